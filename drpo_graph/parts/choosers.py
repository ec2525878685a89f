"""What chooses a system prompt for each query, where one prompt for all is not the best."""

from typing import Protocol, runtime_checkable

from drpo_graph.records import Record


class PromptChoice(Record):
    """The system prompt that was chosen for one query."""

    prompt: str
    name: str = ""
    """A short label of the prompt."""
    reward: float | None = None
    """What it is expected to bring, from 0 to 1, before its price is taken off; ``None`` where nobody knows."""
    gain: float | None = None
    """How much more than the best single prompt is expected of it; 0 where it is that one."""
    confidence: float | None = None
    """How likely it is at least as good as the best single prompt on this query, from 0 to 1."""
    has_abstained: bool = False
    """Whether the evidence supports no choice by query, and this is the best single prompt."""
    reason: str = ""
    """Why, in a sentence."""


@runtime_checkable
class PromptChooser(Protocol):
    """Chooses a system prompt for each query, such as :class:`~drpo_graph.oirl.PromptRouter`."""

    async def achoose(self, query: str) -> PromptChoice:
        """Return the prompt for a query."""
        ...
