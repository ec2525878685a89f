"""Damage to what is stored: each record carries a sum over itself and its place, by which it is noticed and told."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pydantic import JsonValue, ValidationError

from drpo_graph.errors import DamagedError

SUM_BYTES = 8
"""Against accidents, not against forgery: a key seals what others must not be able to change."""
LOST: Final[dict[str, JsonValue]] = {}
"""Stands for the value of a record that is damaged, where the others are to be read all the same; known by identity."""
UNREADABLE: Final[dict[str, JsonValue]] = {}
"""Stands for a value that is no JSON, until it is known whose it is; known by identity."""


_to_text = json.JSONEncoder(separators=(",", ":")).encode


def sum_of(content: bytes, *, place: str) -> bytes:
    """Return the sum of what stands at a place."""
    made = hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=SUM_BYTES)
    made.update(b"\0")
    made.update(content)
    return made.digest()


def sum_of_value(value: Mapping[str, object], *, place: str) -> str:
    """Return the sum of a JSON value that stands at a place, as a text."""
    text = _to_text(value)
    if "NaN" in text or "Infinity" in text:
        # As SQLite's store keeps them, which writes by other rules.
        text = _to_text(json.loads(text, parse_constant=lambda _: None))
    return sum_of(text.encode(), place=place).hex()


def read_json(text: bytes | str) -> dict[str, JsonValue]:
    """Return a stored value, or :data:`UNREADABLE` where it is no JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return UNREADABLE
    return value if isinstance(value, dict) else UNREADABLE


def tell_damage(what: str, *, thread_id: str | None = None, cause: str = "it is not what was stored") -> DamagedError:
    """Return the error that says which record is damaged, what is still good, and what to do."""
    named = thread_id or "THREAD"
    return DamagedError(
        f"{what} is damaged: {cause}. `drpo runs` and `drpo show` read the other runs; `drpo export {named} "
        "--output DIR` writes what can be read of this one. Put a copy in its place that is whole to go on.",
        thread_id=thread_id,
    )


def tell_record(namespace: Sequence[str], key: str, *, cause: str = "it is not what was stored") -> DamagedError:
    """Return the error of a damaged record of the store."""
    # ("drpo", run, kind), or ("drpo", "runs") with the run as the key.
    is_of_list = len(namespace) < 3
    thread_id = key if is_of_list else namespace[1].replace("%2E", ".").replace("%25", "%")
    what = "its entry in the list of runs" if is_of_list else f"its record {namespace[2]}/{key[:80]}"
    return tell_damage(f"Run {thread_id!r}: {what}", thread_id=thread_id, cause=cause)


@contextmanager
def valid(thread_id: str, what: str) -> Iterator[None]:
    """Tell as damage that what was stored has not the form of what it should be: old records carry no sum."""
    try:
        yield
    except (ValidationError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise tell_damage(f"Run {thread_id!r}: {what}", thread_id=thread_id) from error
