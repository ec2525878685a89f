"""What chooses prompts, without a reward model: by a table of queries, in memory or in a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from drpo_graph.errors import RewardModelError
from drpo_graph.parts.choosers import PromptChoice

BEST = "Think first."
PROMPT_BY_QUERY = {"3 + 3?": "Count on your fingers.", "What is rain?": "Explain to {user}; use {{braces}}."}
"""For other queries it abstains."""
FORBIDDEN = "Which query has no embedding?"


@dataclass
class FakePrompt:
    """One of those to choose from."""

    text: str


@dataclass
class FakeChooser:
    """Chooses by a table, and notes what it is asked."""

    best_prompt: str = BEST
    name: str = "table"
    prompt_by_query: dict[str, str] = field(default_factory=lambda: dict(PROMPT_BY_QUERY))
    asked: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> tuple[FakePrompt, ...]:
        """What it chooses from."""
        return tuple(map(FakePrompt, (self.best_prompt, *self.prompt_by_query.values())))

    async def achoose(self, query: str) -> PromptChoice:
        """Return the prompt for a query."""
        self.asked.append(query)
        if query == FORBIDDEN:
            raise RewardModelError("The query cannot be embedded.")
        chosen = self.prompt_by_query.get(query)
        if chosen is None:
            return PromptChoice(prompt=self.best_prompt, name="best", reward=0.5, gain=0.0, has_abstained=True)
        return PromptChoice(prompt=chosen, name="special", reward=0.75, gain=0.25, confidence=0.9, reason="It fits.")


def write_router(path: Path, *, best: str = BEST, prompt_by_query: dict[str, str] | None = None) -> Path:
    """Write the file of a chooser, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = PROMPT_BY_QUERY if prompt_by_query is None else prompt_by_query
    path.write_text(json.dumps({"best_prompt": best, "name": path.stem, "prompt_by_query": table}))
    return path


class RouterReader:
    """Reads such files, and counts."""

    def __init__(self) -> None:
        self.opened: list[FakeChooser] = []
        self.base_urls: list[str | None] = []
        """Where each was told that embeddings are served."""

    def __call__(self, path: Path) -> FakeChooser:
        try:
            self.opened.append(FakeChooser(**json.loads(path.read_text())))
        except ValueError as error:
            raise RewardModelError(f"Router {path}: it is none.") from error
        return self.opened[-1]

    @property
    def asked(self) -> list[str]:
        """All queries that its choosers were asked, each chooser's together."""
        return [query for one in self.opened for query in one.asked]
