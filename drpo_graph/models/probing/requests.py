"""The requests of a probe: one small question per capability."""

import asyncio
import re
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

_OPENING = f"{PROBE_TEXT} this request finds out what the server can do, and its reply is thrown away."
PLAIN = f"{_OPENING} Count from one to ten in words."
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

_SEED = 20241113
_SHORT, _LONG, _REASONING = 16, 32, 256
"""Reply limits in tokens: of most requests, of those for a JSON value, of models that think before they answer."""

Outcome = ProbeReply | CallFailure


class Asker:
    """Asks an endpoint for completions, in the terms that it takes."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.is_flat = False
        """Whether to ask ``/completions``, for a model without a chat template."""
        self.replies: list[ProbeReply] = []
        self.has_chatted = False
        """Whether one of them came from ``/chat/completions``."""
        self._limit_field = "max_tokens"
        self._has_temperature = True

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
            fields: Further fields of the request.
            is_flat: Whether to ask ``/completions``, in place of what all other requests do.
            system: The system prompt, if any.
            num_tokens: The reply's limit.
        """
        is_flat = self.is_flat if is_flat is None else is_flat
        turns: list[JsonValue] = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        asked: dict[str, JsonValue] = {"prompt": text} if is_flat else {"messages": turns}
        asked = {"model": self.wire.address.name, **asked, "temperature": 0.0, **(fields or {})}
        while True:
            terms = (self._limit_field, self._has_temperature)
            body = {**asked, "max_tokens": num_tokens} if is_flat else self._in_own_terms(asked, num_tokens)
            answer = await self.wire.post("/completions" if is_flat else "/chat/completions", body)
            if not isinstance(answer, CallFailure):
                return self._read(answer, is_flat=is_flat)
            if not is_flat:
                self._learn_terms(answer)
            if terms == (self._limit_field, self._has_temperature):
                return answer

    def _in_own_terms(self, asked: Mapping[str, JsonValue], num_tokens: int) -> dict[str, JsonValue]:
        limit = num_tokens if self._limit_field == "max_tokens" else _REASONING
        body = {**asked, self._limit_field: limit}
        if not self._has_temperature:
            del body["temperature"]
        return body

    def _learn_terms(self, failure: CallFailure) -> None:
        if failure.kind not in ("http_400", "http_422"):
            return
        if "max_tokens" in failure.message and self._limit_field == "max_tokens":
            self._limit_field, self._has_temperature = "max_completion_tokens", False
        elif re.search("temperature", failure.message, re.I):
            self._has_temperature = False

    def _read(self, answer: Mapping[str, JsonValue], *, is_flat: bool) -> Outcome:
        try:
            reply = ProbeReply.model_validate(answer)
        except ValidationError as error:
            return CallFailure("malformed", "retry", f"no completion: {error.errors()[0]['msg']}")
        self.replies.append(reply)
        self.has_chatted |= not is_flat
        return reply


async def ask_all(asker: Asker, plain: ProbeReply | None) -> dict[str, bool | None]:
    """Return the capabilities that requests decide, but for ``has_chat``.

    Args:
        asker: The endpoint.
        plain: Its reply to :data:`PLAIN`. Where there is none, a refusal of anything else proves nothing.
    """
    tests = {
        "has_completions": _test_completions(asker, plain),
        "has_stop": _test_stop(asker, plain),
        "has_logprobs": _test_logprobs(asker, plain),
        "has_system_role": _test_system_role(asker, plain),
        "has_json_schema": _test_json_schema(asker, plain),
        "has_tools": _test_tools(asker, plain),
        "has_json_mode": _test_json_mode(asker, plain),
    }
    sampling, verdicts = await asyncio.gather(_test_sampling(asker, plain), asyncio.gather(*tests.values()))
    reports = any(reply.reports_cached_tokens for reply in asker.replies)
    return {
        **sampling,
        **dict(zip(tests, verdicts, strict=True)),
        "reports_cached_tokens": reports if asker.replies else None,
    }


async def _test_completions(asker: Asker, plain: ProbeReply | None) -> bool | None:
    if asker.is_flat and plain is not None:
        return True
    reply = await asker.ask(PLAIN, is_flat=True)
    return _refusal(reply, plain) if isinstance(reply, CallFailure) else True


async def _test_sampling(asker: Asker, plain: ProbeReply | None) -> dict[str, bool | None]:
    several, first, second = await asyncio.gather(
        asker.ask(_INVENT, {"n": 2, "temperature": 1.0}),
        asker.ask(_INVENT, {"seed": _SEED, "temperature": 1.0}),
        asker.ask(_INVENT, {"seed": _SEED, "temperature": 1.0}),
    )
    has_n = _refusal(several, plain) if isinstance(several, CallFailure) else len(several.choices) > 1
    found: dict[str, bool | None] = {"has_n": has_n, "has_seed": None, "is_reproducible": None}
    if isinstance(first, ProbeReply) and isinstance(second, ProbeReply):
        unseeded = several if isinstance(several, ProbeReply) else await asker.ask(_INVENT, {"temperature": 1.0})
        others = [choice.said for choice in unseeded.choices] if isinstance(unseeded, ProbeReply) else []
        is_reproducible = judge_reproducible(first.first.said, second.first.said, others=others)
        return {**found, "has_seed": True, "is_reproducible": is_reproducible}
    verdicts = [True if isinstance(one, ProbeReply) else _refusal(one, plain) for one in (first, second)]
    return {**found, "has_seed": next((one for one in verdicts if one is not None), None)}


async def _test_stop(asker: Asker, plain: ProbeReply | None) -> bool | None:
    stop = choose_stop(plain.first.said) if plain else ""
    if plain is None or not stop:
        return None
    stopped = await asker.ask(PLAIN, {"stop": [stop]})
    if isinstance(stopped, CallFailure):
        return _refusal(stopped, plain)
    return judge_stop(stopped.first.said, plain=plain.first.said, stop=stop)


async def _test_logprobs(asker: Asker, plain: ProbeReply | None) -> bool | None:
    fields: dict[str, JsonValue] = {"logprobs": 5} if asker.is_flat else {"logprobs": True, "top_logprobs": 5}
    return _judge(await asker.ask(PLAIN, fields, num_tokens=2), judge_logprobs, plain=plain)


async def _test_system_role(asker: Asker, plain: ProbeReply | None) -> bool | None:
    if asker.is_flat:
        return False
    reply = await asker.ask(PLAIN, system=_SYSTEM_PROMPT, num_tokens=2)
    if isinstance(reply, CallFailure):
        return _refusal(reply, plain)
    return judge_system_role(reply, plain=plain) if plain else None


async def _test_json_schema(asker: Asker, plain: ProbeReply | None) -> bool | None:
    wanted: JsonValue = {"name": "answer", "schema": _SCHEMA, "strict": True}
    asked: dict[str, JsonValue] = {"response_format": {"type": "json_schema", "json_schema": wanted}}
    reply = await asker.ask(_ANSWER, asked, num_tokens=_LONG)
    return _judge(reply, judge_enum, plain=plain)


async def _test_tools(asker: Asker, plain: ProbeReply | None) -> bool | None:
    if asker.is_flat:
        return False  # Tools are a matter of chat; some servers enforce a schema in text completions as well.
    function: JsonValue = {"name": FUNCTION_NAME, "description": "Gives the answer.", "parameters": _SCHEMA}
    asked: dict[str, JsonValue] = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": FUNCTION_NAME}},
    }
    reply = await asker.ask(_ANSWER, asked, num_tokens=_LONG)
    return _judge(reply, judge_call, plain=plain)


async def _test_json_mode(asker: Asker, plain: ProbeReply | None) -> bool | None:
    reply = await asker.ask(_GREET, {"response_format": {"type": "json_object"}}, num_tokens=_LONG)
    return _judge(reply, judge_json, plain=plain)


def _judge(outcome: Outcome, judge: Callable[[ProbeChoice], bool | None], *, plain: ProbeReply | None) -> bool | None:
    return _refusal(outcome, plain) if isinstance(outcome, CallFailure) else judge(outcome.first)


def _refusal(failure: CallFailure, plain: ProbeReply | None) -> bool | None:
    return False if plain is not None and is_refused(failure) else None
