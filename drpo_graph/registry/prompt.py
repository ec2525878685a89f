"""A registered prompt: the text, and what is known of where it comes from and what it gained."""

import datetime
import re
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from drpo_graph.errors import UsageError
from drpo_graph.evidence import find_evidence
from drpo_graph.prompts.placeholders import FieldStyle, TemplateSyntaxError, as_format, count_placeholders
from drpo_graph.records import Record, RunResult
from drpo_graph.safety.texts import clean_surrogates

if TYPE_CHECKING:
    from langchain_core.prompts import ChatPromptTemplate

_MESSAGES = "messages"
_NO_PATH: Final = re.compile(r"[\\\x00-\x1f]")
_Writable = Annotated[str, AfterValidator(clean_surrogates)]

GENERAL_PROMPT: Final = files(__package__).joinpath("general.md").read_text(encoding="utf-8").rstrip("\n")
"""The words of ``general.md``."""


class RegisteredPrompt(Record):
    """A model's system prompt with its provenance."""

    model: str = Field(min_length=1)
    """The model's name, as inference asks for it: ``provider:model``, or without the provider."""
    system_prompt: _Writable
    """The prompt; a router's best single one, for those who ask no router."""
    router: str | None = None
    """The file of the router that chooses a prompt for each query, by its path in the registry's folder."""
    placeholders: FieldStyle | None = None
    """How the prompt marks what an app fills in; ``None`` when braces and dollar signs are what they are."""
    source: _Writable | None = None
    """Where it was read, or who made it."""
    run: _Writable | None = None
    """The run that found it."""
    reward: float | None = None
    initial_reward: float | None = None
    """The initial prompt's reward on the same queries, where it was measured there."""
    difference: float | None = None
    """Mean of (this prompt - initial prompt) over held-out queries."""
    interval_low: float | None = None
    interval_high: float | None = None
    """Bounds of the 95% interval of ``difference``."""
    is_significant: bool | None = None
    """Whether the interval lies above zero; ``None`` when nothing was validated."""
    date: datetime.date | None = None
    """When the run ended, or the prompt was imported (UTC)."""
    licence: _Writable | None = None
    """Under which the prompt may be used."""

    @field_validator("system_prompt")
    @classmethod
    def _reject_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is blank")
        return value

    @field_validator("router")
    @classmethod
    def _reject_foreign_file(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = PurePosixPath(value).parts
        if not parts or ".." in parts or parts[0] == "/" or _NO_PATH.search(value):
            raise ValueError("it names no file in the registry's folder")
        return value

    @model_serializer(mode="wrap")
    def _leave_out_no_router(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Earlier releases read a prompt without a router.
        fields: dict[str, object] = serialize(self)
        return {name: one for name, one in fields.items() if one is not None or name != "router"}

    @classmethod
    def from_result(
        cls,
        result: RunResult,
        *,
        model: str,
        source: str | None = None,
        date: datetime.date | None = None,
        licence: str | None = None,
        placeholders: FieldStyle | None = None,
    ) -> Self:
        """Return the prompt that a run delivers; its rewards are those on held-out queries where there were any.

        ``source`` is where the run is kept, ``date`` when it ended; the rest is as the record's fields say.
        """
        is_initial = find_evidence(result) == "initial_prompt"
        fields: dict[str, object] = {
            "reward": result.reward,
            # Of other queries it would pass for a comparison.
            "initial_reward": result.reward if is_initial else result.initial_reward_same_queries,
        }
        if (validation := result.validation) is not None:
            fields = {
                "reward": validation.initial_reward,
                "initial_reward": validation.initial_reward,
                "is_significant": False,
            }
            for one in validation.comparisons:
                if one.candidate_id == result.candidate_id:
                    names = ("reward", "difference", "interval_low", "interval_high", "is_significant")
                    fields |= {name: getattr(one, name) for name in names}
        known = cls(
            model=model,
            system_prompt=result.system_prompt,
            source=source,
            run=result.thread_id,
            date=date,
            licence=licence,
            placeholders=placeholders,
        )
        return known.model_copy(update=fields)

    def to_chat_prompt_template(self) -> "ChatPromptTemplate":
        """Return a LangChain template: this system prompt, word by word, then the conversation as ``messages``.

        What an app fills in is a variable of the template, by its name.

        Raises:
            UsageError: the prompt is no template of its style, or has a placeholder with the conversation's name.
        """
        from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder  # Slow to load.

        try:
            text = as_format(self.system_prompt, self.placeholders)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"Prompt of {self.model!r}: placeholders={self.placeholders!r}, and it cannot be read so: {error}."
            ) from error
        if _MESSAGES in count_placeholders(text, "format"):
            raise UsageError(
                f"Prompt of {self.model!r}: the template takes the conversation as {_MESSAGES!r}, which the prompt has "
                "as a placeholder. Rename that."
            )
        return ChatPromptTemplate.from_messages([("system", text), MessagesPlaceholder(_MESSAGES)])
