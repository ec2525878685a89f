"""What an answer to a probe proves: ``True``, ``False``, or ``None`` where it proves nothing."""

import json
import re
from collections.abc import Sequence

from pydantic import BaseModel, JsonValue

from drpo_graph.models.answers import is_cut, read_answer
from drpo_graph.models.failures import CallFailure, is_context_overflow

ENUM_VALUE = "zq7"
"""Nothing in a prompt suggests it: only a schema that is enforced brings it about."""

FUNCTION_NAME = "give_answer"

_ONLY_REPLY = json.dumps({"answer": ENUM_VALUE}, separators=(",", ":"))
_MIN_SYSTEM_TOKENS = 100
"""What a long system prompt adds at the least, even where it stands in for the template's own."""

_REFUSING_KINDS = frozenset(f"http_{status}" for status in (400, 403, 404, 405, 415, 422, 501))
_LIMIT_WORDS = re.compile(r"max_(completion_)?tokens|output limit", re.I)
_NEVER_WORDS = re.compile(r"not (supported|implemented)|unsupported|requires? --", re.I)


class _Function(BaseModel):
    name: str = ""
    arguments: str | None = None


class _ToolCall(BaseModel):
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class ProbeChoice(BaseModel):
    """One choice of a chat or text completion."""

    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: dict[str, JsonValue] | None = None

    @property
    def said(self) -> str:
        """The reply's text after the model's thinking; empty while that has not ended."""
        text = (self.message.content if self.message else self.text) or ""
        return read_answer(text, is_structured=True).text

    @property
    def is_cut(self) -> bool:
        """Whether the token limit ended it."""
        return is_cut(self.finish_reason)


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    prompt_tokens_details: dict[str, JsonValue] | None = None


class ProbeReply(BaseModel):
    """A chat or text completion."""

    choices: list[ProbeChoice]
    usage: _Usage | None = None

    @property
    def first(self) -> ProbeChoice:
        """The first choice, an empty one where there is none."""
        return self.choices[0] if self.choices else ProbeChoice()

    @property
    def reports_cached_tokens(self) -> bool:
        """Whether the usage says what came from a prefix cache."""
        return self.usage is not None and self.usage.prompt_tokens_details is not None


def is_refused(failure: CallFailure) -> bool:
    """Return whether a server says that it never does what a request asked for beyond a plain one."""
    if _LIMIT_WORDS.search(failure.message) or failure.remedy == "refuse" or is_context_overflow(failure):
        return False
    return failure.kind in _REFUSING_KINDS or bool(_NEVER_WORDS.search(failure.message))


def judge_enum(choice: ProbeChoice) -> bool | None:
    """Return whether a schema that allows one reply only was enforced; a beginning of it, cut off, is proof enough."""
    squeezed = "".join(choice.said.split())
    if not squeezed:
        return None
    if _read_object(choice.said) == json.loads(_ONLY_REPLY):
        return True
    if _ONLY_REPLY.startswith(squeezed):
        # Nothing ended it that may: it was damaged on its way.
        return True if choice.is_cut else None
    return False


def judge_call(choice: ProbeChoice) -> bool | None:
    """Return whether the model was made to call the function."""
    calls = choice.message.tool_calls if choice.message else None
    if not calls:
        return False if choice.said.strip() else None
    arguments = (calls[0].function.arguments or "").strip()
    if not arguments:
        return None if choice.is_cut else False
    return _begins_object(arguments, choice) if calls[0].function.name == FUNCTION_NAME else False


def judge_json(choice: ProbeChoice) -> bool | None:
    """Return whether a reply is a JSON object, or the beginning of one that was cut off."""
    text = choice.said.strip()
    return _begins_object(text, choice) if text else None


def judge_logprobs(choice: ProbeChoice) -> bool | None:
    """Return whether a reply tells how probable other tokens were in place of its own."""
    given = choice.logprobs or {}
    tokens, alternatives = given.get("content"), given.get("top_logprobs")
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict):
        alternatives = tokens[0].get("top_logprobs")
    if isinstance(alternatives, list) and alternatives:
        return True
    return False if choice.said.strip() else None


def judge_system_role(with_system: ProbeReply, *, plain: ProbeReply) -> bool | None:
    """Return whether a long system prompt reached the model: it must have made the prompt longer."""
    counts = [reply.usage.prompt_tokens if reply.usage else None for reply in (plain, with_system)]
    if not counts[0] or not counts[1]:
        return None
    return counts[1] - counts[0] >= _MIN_SYSTEM_TOKENS


def choose_stop(text: str) -> str:
    """Return a word inside a reply, for the same request to end before; empty where the reply is too short."""
    words = text.split()
    return words[1] if len(words) > 1 and words[1] not in words[0] else ""


def judge_stop(said: str, *, plain: str, stop: str) -> bool | None:
    """Return whether a reply ended where it was told to, as the plain reply to the same request did not."""
    # Some servers leave the stop itself in.
    head = said.rstrip().removesuffix(stop).rstrip()
    if stop in head:
        return False
    is_beginning = plain.lstrip().startswith(head.lstrip()) and len(head) < len(plain.strip())
    return True if head and is_beginning else None


def judge_reproducible(first: str, second: str, *, others: Sequence[str]) -> bool | None:
    """Return whether one seed gave one reply twice, where replies do differ without it."""
    if not first.strip() or not second.strip():
        return None
    if first != second:
        return False
    return True if any(other.strip() and other != first for other in others) else None


def _begins_object(text: str, choice: ProbeChoice) -> bool | None:
    """Return whether a text is an object, or one's beginning; one that nothing has ended proves nothing."""
    if _read_object(text) is not None:
        return True
    return (True if choice.is_cut else None) if text.startswith("{") else False


def _read_object(text: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
