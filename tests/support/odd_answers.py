"""Answers that no server should give and some do: bodies that are none, and good ones with a field that is odd."""

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from random import Random
from typing import Any

Path = tuple[str | int, ...]
Spoil = Callable[[dict[str, Any]], bytes]

DEPTH = 100_000


def _body(content: bytes) -> Spoil:
    return lambda _: content


def _with(path: Path, value: object) -> Spoil:
    """Return the good answer's JSON with another value at a place; the first choice's where it has one."""

    def spoil(answer: dict[str, Any]) -> bytes:
        changed = deepcopy(answer)
        _put(changed, path, value)
        return json.dumps(changed).encode()

    return spoil


def _cut(answer: dict[str, Any]) -> bytes:
    whole = json.dumps(answer).encode()
    return whole[: len(whole) * 2 // 3]


def _with_bad_text(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode().replace(b'"index"', b'"ind\xff\xfe"', 1)


def _with_long_number(answer: dict[str, Any]) -> bytes:
    changed = deepcopy(answer)
    _put(changed, ("usage", "completion_tokens"), "LONG")
    return json.dumps(changed).encode().replace(b'"LONG"', b"1" * 5_001)


NO_CHOICES = _with(("choices",), [])
BODIES: Mapping[str, Spoil] = {
    "no body": _body(b""),
    "a page": _body(b"<html><body>Bad gateway</body></html>"),
    "null": _body(b"null"),
    "an empty text": _body(b'""'),
    "a text": _body(b'"try again"'),
    "an empty list": _body(b"[]"),
    "NaN": _body(b"NaN"),
    "Infinity": _body(b"-Infinity"),
    "minus nought": _body(b"-0.0"),
    "a number of 5,000 digits": _body(b"1" * 5_000),
    "an empty object": _body(b"{}"),
    "nested lists": _body(b"[" * DEPTH),
    "nested objects": _body(b'{"a":' * DEPTH),
    "cut": _cut,
    "usage of 5,001 digits": _with_long_number,
    "no UTF-8": _with_bad_text,
    "an error": _body(b'{"error": {"message": "upstream went away", "type": "upstream"}}'),
    "choices null": _with(("choices",), None),
    "choices a text": _with(("choices",), "none"),
    "a choice null": _with(("choices", 0), None),
}
"""Answers that are no reply: what was asked is asked again."""

FIELDS: Mapping[str, Spoil] = {
    "UTF-16": lambda answer: json.dumps(answer).encode("utf-16"),
    "usage 1e30": _with(("usage", "completion_tokens"), 1e30),
    "usage negative": _with(("usage", "prompt_tokens"), -1_000_000),
    "usage beyond 64 bits": _with(("usage", "completion_tokens"), 2**64),
    "usage infinite": _with(("usage", "completion_tokens"), float("inf")),
    "usage no number": _with(("usage", "prompt_tokens"), "many"),
    "usage a list": _with(("usage",), [1, 2]),
    "no usage": _with(("usage",), None),
    "details a text": _with(("usage", "prompt_tokens_details"), "cached"),
    "id a list": _with(("id",), [[]]),
    "created negative": _with(("created",), -1e300),
    "an index of 1e30": _with(("choices", 0, "index"), 1e30),
    "log probabilities a text": _with(("choices", 0, "logprobs"), "none"),
    "log probabilities NaN": _with(("choices", 0, "logprobs"), {"content": [{"token": "4", "logprob": float("nan")}]}),
}
"""Good replies with something odd beside them: used as they are."""

ODD_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, -0.0, 1e30, -1e30, 2**63, 2**64, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x" * 5_000, "\ud800", "\x00", "\x1b[31m", "<think>", "[DONE]", "NaN", "1e400"),
    *([], {}, [[]], [{}], {"": None}, [None], {"a": {"b": [1]}}, ["a", 1, {}]),
)


def paths_of(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield the place of each value in a JSON value, its own first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from paths_of(one, (*path, name))


def mutate(answer: Mapping[str, Any], generator: Random) -> bytes:
    """Return a good answer's JSON with one to three of its fields changed, left out, doubled or renamed."""
    changed: Any = deepcopy(dict(answer))
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        places = [path for path in paths_of(changed) if path]
        if not places:
            break
        _mutate_at(changed, generator.choice(places), generator)
    raw = json.dumps(changed).encode()
    if generator.random() < 0.1:
        at = generator.randrange(len(raw))
        return raw[:at] + bytes(generator.randrange(256) for _ in range(generator.choice((0, 1, 3)))) + raw[at + 1 :]
    return raw[: generator.randrange(len(raw))] if generator.random() < 0.03 else raw


def _mutate_at(changed: Any, path: Path, generator: Random) -> None:
    holder, last = _find(changed, path[:-1]), path[-1]
    match generator.randrange(8):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, list):
            holder.append(deepcopy(holder[last]))
        case 1:
            holder[f"{last}_"] = holder.pop(last)
        case 2:
            holder[last] = [deepcopy(holder[last])]
        case 3:
            holder[last] = {"value": deepcopy(holder[last])}
        case _:
            holder[last] = deepcopy(generator.choice(ODD_VALUES))


def _find(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(changed: dict[str, Any], path: Path, value: object) -> None:
    _find(changed, path[:-1])[path[-1]] = value
