"""A run that is stopped by what a role replies, and resumed once that is mended."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drpo_graph.data.order import order_queries
from drpo_graph.records import Query, RunResult
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.fake_server import FakeServer, Reply
from tests.support.oracle import build_responder, role_of
from tests.support.world import INITIAL_PROMPT, World

QUERIES = World(seed=3).train_queries
BAD = Reply(["It depends."])
EXPIRED = Reply(status=401, error_message="key expired")

Rule = Callable[[str, str], Reply | None]


class Mood:
    """The world, but for what a rule makes of a role's request."""

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule
        self.asked: list[tuple[str, str, Reply | None]] = []
        self._world = build_responder(seed=3)

    def __call__(self, body: dict[str, Any]) -> Reply:
        """Return the rule's reply, else the world's."""
        messages = body["messages"]
        role, told = role_of(messages), "\n".join(str(one["content"]) for one in messages)
        given = self.rule(role, told) if self.rule else None
        self.asked.append((role, told, given))
        return given or self._world(body)

    @property
    def num_answered(self) -> int:
        """Requests that were given a reply, of use or not."""
        return sum(given is None or given.status == 200 for *_, given in self.asked)

    def questions(self, role: str, *, bad: bool, since: int = 0) -> list[str]:
        """Return what a role was asked, where its reply was of no use or was the world's."""
        return [told for asked, told, given in self.asked[since:] if asked == role and (given is BAD) == bad]


def _make_settings(url: str, **values: Any) -> Settings:
    search = {"depth": 4, "beam_size": 2, "n_actions": 2, "queries_per_level": 2, "query_policy": "stream"}
    fixed = {"initial_prompt": INITIAL_PROMPT, "model": "openai:world", "base_url": url, "probe": False}
    return build_settings({**fixed, **search, "retry_wait_s": 0.01, **values})


def in_order(num: int = 12) -> list[str]:
    """Return the first queries as a run takes them."""
    records = [Query(id=f"query-{number:03d}", text=text) for number, text in enumerate(QUERIES[:num], 1)]
    return [one.text for one in order_queries(records, seed=0, num_queries=None)]


class Bench:
    """A run that is stopped and resumed on one server."""

    def __init__(
        self, folder: Path, mood: Mood, server: FakeServer, *, checkpoint: str | None = None, **values: Any
    ) -> None:
        self.mood = mood
        self.options = RunOptions(checkpoint=checkpoint or folder / "runs.sqlite", log_dir=folder / "run")
        self._settings = _make_settings(server.base_url, **values)

    async def start(self, queries: Sequence[str] = QUERIES[:12], validation: Sequence[str] = ()) -> RunResult:
        return await optimize(
            queries, settings=self._settings, validation=validation, thread_id="t", options=self.options
        )

    async def mend(self, *, retries_failed: bool = True, rule: Rule | None = None) -> RunResult:
        self.mood.rule = rule
        return await resume("t", options=self.options, retries_failed=retries_failed)


def count_calls(result: RunResult) -> int:
    return sum(usage.calls for usage in result.usage_by_role.values())


def critic_is_bad(role: str, told: str) -> Reply | None:
    return BAD if role == "critic" else None
