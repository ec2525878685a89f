"""Texts made free of keys, whoever wrote them: servers and client libraries have been seen to echo what they got.

Each key that this process reads is remembered here, and hidden in whatever leaves the process as a message.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pydantic import JsonValue

MIN_SECRET_CHARS = 4
"""A shorter key is a placeholder; hiding it would blot out words."""

_MIN_REMEMBERED_CHARS = 8
"""Of keys that are hidden in every message, not only in those about their own server."""
# A lone name is a token as often as a user, but not a database's: its user is part of what is to be repeated.
_USER_IN_URL = re.compile(r"(?<=://)(?:(?<!postgres://)(?<!postgresql://)[^/?#\s@]+|[^/?#\s@:]*:[^/?#\s@]+)(?=@)")
_BEARER = re.compile(r"(?<=\bBearer )[\w.~+/=-]{8,}")
_SECRET_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|authorization|credentials?|passwo?r?d|secret|((access|auth|bearer|id|x)[_-]?)?token)$", re.I
)
_SECRET_VALUE = re.compile(r"(Bearer|Basic) \S{4,}|[a-z]+://[^/?#\s@]+@.*", re.I | re.DOTALL)
_MASK = "***"

_remembered: set[str] = set()


def remember_secret(secret: str) -> None:
    """Have a key hidden by :func:`redact` from now on, for as long as the process lives."""
    if len(secret) >= _MIN_REMEMBERED_CHARS:
        _remembered.add(secret)


def redact(text: str, *, secret: str = "") -> str:
    """Return the text without the keys that this process knows, users in URLs, and bearer tokens.

    Args:
        text: What is to be shown or stored.
        secret: One more key, which may be shorter than those that are remembered.
    """
    known = {*_remembered, secret} if len(secret) >= MIN_SECRET_CHARS else _remembered
    # The longest first: a key may begin with another one.
    for one in sorted(known, key=len, reverse=True):
        text = text.replace(one, _MASK)
        if (quoted := quote(one, safe="")) != one:
            text = text.replace(quoted, _MASK)
    return _BEARER.sub(_MASK, _USER_IN_URL.sub(_MASK, text))


def mask(text: str, *, secret: str) -> str:
    """Return the text with a key in it blotted out, and everything else at its place."""
    if len(secret) < MIN_SECRET_CHARS:
        return text
    return text.replace(secret, "*" * len(secret))


def mask_all(value: JsonValue, *, secret: str) -> JsonValue:
    """Return a JSON value with a key blotted out in each of its texts."""
    if isinstance(value, str):
        return mask(value, secret=secret)
    if isinstance(value, list):
        return [mask_all(one, secret=secret) for one in value]
    if isinstance(value, dict):
        return {mask(name, secret=secret): mask_all(one, secret=secret) for name, one in value.items()}
    return value


def find_secret_field(value: object, *, place: str = "") -> str | None:
    """Return where a JSON value looks as if it held a key, by a field's name or the form of a text; else ``None``."""
    if isinstance(value, str):
        return place or "value" if _SECRET_VALUE.fullmatch(value) else None
    inside: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        for name, one in value.items():
            own = f"{place}.{name}" if place else str(name)
            if isinstance(one, str) and one and _SECRET_NAME.search(str(name)):
                return own
            inside.append((own, one))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        inside = [(f"{place}[{index}]", one) for index, one in enumerate(value)]
    return next((found for own, one in inside if (found := find_secret_field(one, place=own))), None)
