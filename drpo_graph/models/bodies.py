"""What a server's answer holds that did not come as the JSON object that was asked for. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from drpo_graph.models.failures import MAX_QUOTED, MalformedReplyError

_DONE = "[DONE]"


def read_body(text: str) -> dict[str, Any]:
    """Return the JSON object in a body that is not declared as JSON: as it is, or in the parts of an event stream.

    Raises:
        MalformedReplyError: there is none, or its stream ended before its reply did.
    """
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = _join(_read_events(text))
    if not isinstance(answer, dict):
        told = f"no JSON object: {text[:MAX_QUOTED]}" if text.strip() else "empty"
        raise MalformedReplyError(f"the server's answer is {told}")
    return answer


def _read_events(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the parts in server-sent events."""
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field.strip() != "data" or value.strip() in ("", _DONE):
            continue
        try:
            part = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise MalformedReplyError(f"a part of the server's answer is no JSON: {value[:MAX_QUOTED]}") from error
        if isinstance(part, dict):
            yield part


def _join(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the whole completion, chat or text, of which these are the parts; an error in one is told as it came."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        whole |= {name: value for name, value in part.items() if name != "choices" and value is not None}
        for given in part.get("choices") or ():
            place = given.get("index") or 0
            _add(choices.setdefault(place, {"index": place, "finish_reason": None}), given)
    if not whole and not choices:
        return None
    if "error" in whole:
        return whole
    if not choices or any(one["finish_reason"] is None for one in choices.values()):
        raise MalformedReplyError("the server's stream ended before its reply did: no finish reason")
    return {**whole, "choices": [choices[place] for place in sorted(choices)]}


def _add(choice: dict[str, Any], given: Mapping[str, Any]) -> None:
    if isinstance(given.get("text"), str):
        choice["text"] = choice.get("text", "") + given["text"]
    delta = given.get("delta") or given.get("message")
    if isinstance(delta, Mapping):
        _add_delta(choice.setdefault("message", {"role": "assistant", "content": ""}), delta)
    choice["finish_reason"] = given.get("finish_reason") or choice["finish_reason"]
    for name, tokens in (given.get("logprobs") or {}).items():
        if isinstance(tokens, list):
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(tokens)


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name in ("content", "refusal"):
        if isinstance(delta.get(name), str):
            message[name] = (message.get(name) or "") + delta[name]
    for call in (delta.get("tool_calls") or ())[:1]:
        function = message.setdefault("tool_calls", [{"function": {"arguments": ""}}])[0]["function"]
        given = call.get("function", {}).get("arguments")
        function["arguments"] += given if isinstance(given, str) else json.dumps(given) if given else ""
