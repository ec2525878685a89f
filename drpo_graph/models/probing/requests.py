"""The requests of a probe: one small question per capability."""

import asyncio
from collections.abc import Callable, Mapping

from pydantic import JsonValue, ValidationError

from drpo_graph.models.capabilities import PROBE_TEXT
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Wire
from drpo_graph.models.probing.replies import (
    ENUM_VALUE,
    FUNCTION_NAME,
    ProbeChoice,
    ProbeReply,
    choose_stop,
    is_refused,
    judge_call,
    judge_enum,
    judge_json,
    judge_logprobs,
    judge_reproducible,
    judge_stop,
    judge_system_role,
)
from drpo_graph.models.terms import LIMIT_FIELDS, NO_TERMS

_OWN_FIELDS = ("temperature", *LIMIT_FIELDS)
"""Fields of all requests; to find out about others is what a request is for."""

_OPENING = f"{PROBE_TEXT} this request finds out what the server can do, and its reply is thrown away."
_PLAIN = f"{_OPENING} Count from one to ten in words."
_INVENT = f"{_OPENING} Invent a name for a planet, then write down ten digits at random."
_ANSWER = f"{_OPENING} Give any answer you like."
_GREET = f"{_OPENING} Say hello in one word. Some servers want the word JSON to be here."
_SYSTEM_PROMPT = "Answer as briefly as you can. " * 40
_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": [ENUM_VALUE]}},
    "required": ["answer"],
    "additionalProperties": False,
}
_SCHEMA_FORMAT: JsonValue = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": _SCHEMA, "strict": True},
}
_JSON_FORMAT: JsonValue = {"type": "json_object"}
_FUNCTION: JsonValue = {"name": FUNCTION_NAME, "description": "Gives the answer.", "parameters": _SCHEMA}
_FORCED_CALL: dict[str, JsonValue] = {
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": FUNCTION_NAME}},
}

_SEED = 20241113
_SHORT, _LONG, _REASONING = 16, 32, 256
"""Reply limits in tokens: of most requests, of those for a JSON value, of models that think before they answer."""

_MAX_TRIES = 3
"""So often a reply has to say that something is missing."""

Outcome = ProbeReply | CallFailure


class Asker:
    """Asks an endpoint for completions, in the terms that it takes."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.is_flat = False
        """Whether to ask ``/completions``, for a model without a chat template."""
        self.plain: ProbeReply | None = None
        """The reply to a plain request. Where there is none, a refusal of anything else proves nothing."""
        self.replies: list[ProbeReply] = []
        self.unproven: list[str] = []
        """Names of capabilities that no request was refused for, and no reply showed."""
        self.terms = NO_TERMS
        """Fields that the server refused of those that all requests have."""
        self._has_chatted = False

    @property
    def has_chat(self) -> bool | None:
        """Whether ``/chat/completions`` answers; the plain request may fail for the moment where others go through."""
        if self._has_chatted:
            return True
        return False if self.is_flat else None

    async def ask_plainly(self) -> Outcome:
        """Return the completion of a plain request, and keep it to compare others with."""
        outcome = await self.ask(_PLAIN)
        self.plain = outcome if isinstance(outcome, ProbeReply) else None
        return outcome

    async def ask(
        self,
        text: str,
        fields: Mapping[str, JsonValue] | None = None,
        *,
        is_flat: bool | None = None,
        system: str = "",
        num_tokens: int = _SHORT,
    ) -> Outcome:
        """Return the completion of one request; where the server names the terms it wants, it is asked again in them.

        Args:
            text: The user's message, or the prompt.
            is_flat: Whether to ask ``/completions``, in place of what all other requests do.
        """
        is_flat = self.is_flat if is_flat is None else is_flat
        turns: list[JsonValue] = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        asked: dict[str, JsonValue] = {"prompt": text} if is_flat else {"messages": turns}
        asked = {"model": self.wire.address.name, **asked, "temperature": 0.0, **(fields or {})}
        while True:
            terms = self.terms
            body = {**asked, "max_tokens": num_tokens} if is_flat else self._in_own_terms(asked, num_tokens)
            answer = await self.wire.post("/completions" if is_flat else "/chat/completions", body)
            if not isinstance(answer, CallFailure):
                return self._read(answer, is_flat=is_flat)
            if not is_flat and self.terms == terms:  # Else another request has learnt them meanwhile.
                self.terms = terms.after([one for one in answer.refused if one in _OWN_FIELDS])
            if self.terms == terms:
                return answer

    def _in_own_terms(self, asked: Mapping[str, JsonValue], num_tokens: int) -> dict[str, JsonValue]:
        return self.terms.apply({**asked, "max_tokens": num_tokens if self.terms.limit_field is None else _REASONING})

    def _read(self, answer: Mapping[str, JsonValue], *, is_flat: bool) -> Outcome:
        try:
            reply = ProbeReply.model_validate(answer)
        except ValidationError as error:
            return CallFailure("malformed", "retry", f"no completion: {error.errors()[0]['msg']}")
        self.replies.append(reply)
        self._has_chatted |= not is_flat
        return reply


async def ask_all(asker: Asker) -> dict[str, JsonValue]:
    """Return the capabilities that requests decide, but for ``has_chat``."""
    logprobs: dict[str, JsonValue] = {"logprobs": 5} if asker.is_flat else {"logprobs": True, "top_logprobs": 5}
    tests = {
        "has_completions": _test_completions(asker),
        "has_stop": _test_stop(asker),
        "has_logprobs": _test_first(asker, "has_logprobs", judge_logprobs, text=_PLAIN, fields=logprobs, num_tokens=2),
        "has_system_role": _test_system_role(asker),
        "has_json_schema": _test_first(
            asker, "has_json_schema", judge_enum, text=_ANSWER, fields={"response_format": _SCHEMA_FORMAT}
        ),
        "has_tools": _test_tools(asker),
        "has_json_mode": _test_first(
            asker, "has_json_mode", judge_json, text=_GREET, fields={"response_format": _JSON_FORMAT}
        ),
    }
    sampling, verdicts = await asyncio.gather(_test_sampling(asker), asyncio.gather(*tests.values()))
    reports = any(reply.reports_cached_tokens for reply in asker.replies)
    return {
        **sampling,
        **dict(zip(tests, verdicts, strict=True)),
        "reports_cached_tokens": reports if asker.replies else None,
    }


async def _test_first(
    asker: Asker,
    name: str,
    judge: Callable[[ProbeChoice], bool | None],
    *,
    text: str,
    fields: Mapping[str, JsonValue],
    num_tokens: int = _LONG,
) -> bool | None:
    """Return what the first choice of a reply proves; that something is missing, only where further ones do, too.

    A model's reply may be damaged, or miss the point, once: what is written off for it is not used for a day.
    """
    verdicts: set[bool | None] = set()
    for _ in range(_MAX_TRIES):
        outcome = await asker.ask(text, fields, num_tokens=num_tokens)
        if isinstance(outcome, CallFailure):
            return _refusal(outcome, asker)
        verdicts.add(judge(outcome.first))
        if True in verdicts:
            return True
    if None in verdicts:
        return None
    asker.unproven.append(name)
    return False


async def _test_completions(asker: Asker) -> bool | None:
    if asker.is_flat and asker.plain is not None:
        return True
    reply = await asker.ask(_PLAIN, is_flat=True)
    return _refusal(reply, asker) if isinstance(reply, CallFailure) else True


async def _test_sampling(asker: Asker) -> dict[str, bool | None]:
    several, first, second = await asyncio.gather(
        asker.ask(_INVENT, {"n": 2, "temperature": 1.0}),
        asker.ask(_INVENT, {"seed": _SEED, "temperature": 1.0}),
        asker.ask(_INVENT, {"seed": _SEED, "temperature": 1.0}),
    )
    has_n = _refusal(several, asker) if isinstance(several, CallFailure) else len(several.choices) > 1
    found: dict[str, bool | None] = {"has_n": has_n, "has_seed": None, "is_reproducible": None}
    if isinstance(first, ProbeReply) and isinstance(second, ProbeReply):
        unseeded = several if isinstance(several, ProbeReply) else await asker.ask(_INVENT, {"temperature": 1.0})
        others = [choice.said for choice in unseeded.choices] if isinstance(unseeded, ProbeReply) else []
        is_reproducible = judge_reproducible(first.first.said, second.first.said, others=others)
        return {**found, "has_seed": True, "is_reproducible": is_reproducible}
    verdicts = [True if isinstance(one, ProbeReply) else _refusal(one, asker) for one in (first, second)]
    return {**found, "has_seed": next((one for one in verdicts if one is not None), None)}


async def _test_stop(asker: Asker) -> bool | None:
    said = asker.plain.first.said if asker.plain else ""
    stop = choose_stop(said)
    if not stop:
        return None
    stopped = await asker.ask(_PLAIN, {"stop": [stop]})
    if isinstance(stopped, CallFailure):
        return _refusal(stopped, asker)
    return judge_stop(stopped.first.said, plain=said, stop=stop)


async def _test_system_role(asker: Asker) -> bool | None:
    if asker.is_flat:
        return False
    reply = await asker.ask(_PLAIN, system=_SYSTEM_PROMPT, num_tokens=2)
    if isinstance(reply, CallFailure):
        return _refusal(reply, asker)
    return judge_system_role(reply, plain=asker.plain) if asker.plain else None


async def _test_tools(asker: Asker) -> bool | None:
    if asker.is_flat:
        return False  # Tools are a matter of chat; some servers enforce a schema in text completions as well.
    return await _test_first(asker, "has_tools", judge_call, text=_ANSWER, fields=_FORCED_CALL)


def _refusal(failure: CallFailure, asker: Asker) -> bool | None:
    return False if asker.plain is not None and is_refused(failure) else None
