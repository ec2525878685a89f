"""A fake endpoint for searches with a reward function: the base model repeats its prompt, rewrites are scripted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.fake_server import Reply
from tests.support.oracle import role_of


@dataclass
class ScriptedApp:
    """Answers as both models; the last rewrite comes again and again."""

    rewrites: Sequence[str]
    asked: list[str] = field(default_factory=list)
    """System prompts that the base model was given."""
    optimizer_requests: list[str] = field(default_factory=list)
    """The last message of each request for a rewrite."""

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the reply to a request."""
        messages = body["messages"]
        assert isinstance(messages, list)
        if role_of(messages) == "optimizer":
            place = min(len(self.optimizer_requests), len(self.rewrites) - 1)
            self.optimizer_requests.append(messages[-1]["content"])
            return Reply([json.dumps({"analysis": "a", "new_system_prompt": self.rewrites[place]})])
        assert role_of(messages) == "base"
        self.asked.append(messages[0]["content"])
        return Reply([messages[0]["content"]])


def scripted_settings(base_url: str, **values: object) -> Settings:
    """Return settings of a small search on this endpoint: one level, one rewrite."""
    small = {"depth": 2, "n_actions": 1, "beam_size": 1, "queries_per_level": 1, "max_depth_increase": 0}
    return build_settings({"model": "openai:m", "base_url": base_url, "probe": False, **small, **values})
