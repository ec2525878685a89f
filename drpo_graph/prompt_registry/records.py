"""A registered prompt: the text, and what is known of where it comes from and what it gained."""

import datetime
from typing import TYPE_CHECKING, Self

from pydantic import Field

from drpo_graph.records import Record, RunResult

if TYPE_CHECKING:
    from langchain_core.prompts import ChatPromptTemplate


class RegisteredPrompt(Record):
    """A model's system prompt with its provenance."""

    model: str = Field(min_length=1)
    system_prompt: str
    source: str | None = None
    """Where it was read, or who made it."""
    run: str | None = None
    """The run that found it."""
    reward: float | None = None
    initial_reward: float | None = None
    """The initial prompt's reward, on the same queries where it was measured there."""
    difference: float | None = None
    """Mean of (this prompt - initial prompt) over held-out queries."""
    interval_low: float | None = None
    interval_high: float | None = None
    """Bounds of the 95% interval of ``difference``."""
    is_significant: bool | None = None
    """Whether the interval lies above zero; ``None`` when nothing was validated."""
    date: datetime.date | None = None
    licence: str | None = None

    @classmethod
    def from_result(
        cls,
        result: RunResult,
        *,
        model: str,
        source: str | None = None,
        date: datetime.date | None = None,
        licence: str | None = None,
    ) -> Self:
        """Return the prompt that a run delivers; its rewards are those on held-out queries where there were any."""
        known = cls(
            model=model,
            system_prompt=result.system_prompt,
            source=source,
            run=result.thread_id,
            reward=result.reward,
            initial_reward=result.initial_reward
            if result.initial_reward_same_queries is None
            else result.initial_reward_same_queries,
            date=date,
            licence=licence,
        )
        validation = result.validation
        if validation is None:
            return known
        fields: dict[str, object] = {
            "reward": validation.initial_reward,
            "initial_reward": validation.initial_reward,
            "is_significant": False,
        }
        for one in validation.comparisons:
            if one.candidate_id == result.candidate_id:
                names = ("reward", "difference", "interval_low", "interval_high", "is_significant")
                fields |= {name: getattr(one, name) for name in names}
        return known.model_copy(update=fields)

    def to_chat_prompt_template(self) -> "ChatPromptTemplate":
        """Return a LangChain template: this system prompt, word by word, then the conversation as ``messages``."""
        from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder  # Slow to load.

        text = self.system_prompt.replace("{", "{{").replace("}", "}}")
        return ChatPromptTemplate.from_messages([("system", text), MessagesPlaceholder("messages")])
