"""What is asked of a model and what it answers, whatever carries them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import JsonValue

from drpo_graph.models.answers import is_cut
from drpo_graph.models.terms import NO_TERMS, Terms
from drpo_graph.models.token_scores import ScoreToken
from drpo_graph.prompts.library import Message
from drpo_graph.records import Record, Usage


@dataclass(frozen=True, slots=True)
class ReplySchema:
    """The JSON object a reply should be: its name and its JSON schema."""

    name: str
    schema: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that decides a reply, but for the model itself."""

    messages: Sequence[Message]
    num_samples: int = 1
    temperature: float | None = 0.0
    """``None`` leaves it to the model; so for the next one."""
    top_p: float | None = 1.0
    max_tokens: int = 2048
    seed: int | None = None
    stop: tuple[str, ...] = ()
    mode: str = "text"
    """Rung of the reply ladder: ``json_schema``, ``tool``, ``json`` or ``text``."""
    schema: ReplySchema | None = None
    extra_body: Mapping[str, JsonValue] = field(default_factory=dict)
    endpoint: Literal["chat", "completions"] = "chat"
    """``completions`` makes one text of the messages, for the model to continue."""
    top_logprobs: int = 0
    """How many alternatives to tell the probabilities of, per token; 0 asks for none."""
    reasoning_effort: str | None = None
    """How much a reasoning model is to think; ``None`` leaves it to the model."""
    terms: Terms = NO_TERMS
    """How the server wants to be asked. It says nothing of what is asked, so no key knows of it."""
    role: str = ""
    """Who asks, for those who are told of it; no key knows of it either."""

    def key_parts(self) -> dict[str, JsonValue]:
        """Return the request as JSON, for its ledger key."""
        rarely: dict[str, JsonValue] = {}
        if self.endpoint != "chat":
            rarely["endpoint"] = self.endpoint
        if self.top_logprobs:
            rarely["top_logprobs"] = self.top_logprobs
        if self.reasoning_effort is not None:
            rarely["reasoning_effort"] = self.reasoning_effort
        return {
            **rarely,
            "messages": [{"role": one["role"], "content": one["content"]} for one in self.messages],
            "n": self.num_samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop": list(self.stop),
            "mode": self.mode,
            "schema": dict(self.schema.schema) if self.schema and self.mode != "text" else None,
            "extra_body": dict(self.extra_body),
        }


class Choice(Record):
    """One sample of a reply."""

    text: str
    finish_reason: str = "stop"
    refusal: str | None = None
    score_tokens: tuple[ScoreToken, ...] = ()
    """Where token probabilities were asked for: those of the tokens that may be scores."""

    @property
    def is_cut(self) -> bool:
        """Whether the token limit ended it."""
        return is_cut(self.finish_reason)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: one choice per sample (a server may give fewer), and what it cost."""

    choices: tuple[Choice, ...]
    usage: Usage
    has_untrue_usage: bool = False
    """Whether the server reported a usage that cannot be true, and that is left out."""


class Piece(NamedTuple):
    """What one message of a streamed reply adds to it."""

    text: str = ""
    refusal: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
