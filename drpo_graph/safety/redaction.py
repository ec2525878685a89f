"""Texts made free of keys, whoever wrote them: servers and client libraries have been seen to echo what they got.

Each key that this process reads is remembered here, and hidden in whatever leaves the process as a message.
"""

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pydantic import JsonValue

MIN_SECRET_CHARS = 4
"""A shorter key is a placeholder; hiding it would blot out words."""

_MIN_REMEMBERED_CHARS = 8
"""Of keys that are hidden in every message, not only in those about their own server."""
# A password may hold any sign but white space. A lone name is a token as often as a user, but not a database's: its
# user is part of what is to be repeated.
_USER_IN_URL = re.compile(
    r"(?<=://)(?:[^/?#\s@:]*:(?:(?!://)\S)+"
    r"|(?<!postgres://)(?<!postgresql://)[^/?#\s@:](?:(?!://)[^/?#\s:])*)(?=@)"
)
_BEARER = re.compile(r"(?<=\bBearer )[\w.~+/=-]{8,}")
_AUTHORIZATION = re.compile(
    r"(\bauthorization\W{1,5}(?:basic|bearer|digest|token)\s{1,8}|\bbearer\s{1,8}(?=\S{0,200}\d))[^\s\"',;]{4,}", re.I
)
_PARAMETER = re.compile(r"(?<=[?&])([\w.-]{1,80})=[^&\s#\"'<>]+")
_FIELD = re.compile(r"(?<![\w.-])([\w.-]{1,80})(\\?[\"']?\s{0,3}[:=]\s{0,3}\\?[\"']?)([^\s\"'&,;<>\\]+)")
_KEY_PARAMETERS = ("key", "sig", "signature")
_KEY_FORM = re.compile(
    r"(?<![\w-])(?:(?:sk|gsk|xai|pplx|nvapi)[-_][\w-]{16,}|(?:hf|ghp|gho|r8|glpat)[-_](?=[\w-]*\d)[\w-]{16,}"
    r"|AIza[\w-]{20,}|AKIA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A word of a name, wherever it stands in it, also as the end of a longer one.
_SECRET_WORD = re.compile(
    ".*(authorization|passwo?r?d|passphrase|passcode|secret|credential|cookie|jwt|(api|access|secret|private)key"
    "|(access|auth)token)s?"
)
_SECRET_END = re.compile("auth|bearer|pwd|(api|access|auth|bearer|id|refresh|session) tokens?")
# Two words in a row.
_SECRET_PAIR = re.compile(
    r"\b(api|access|account|auth|client|encryption|license|master|private|secret|service|shared|signing|ssh|storage"
    r"|subscription) keys?\b"
)
_TOKEN = re.compile(r"(.* )?token")
_TOKEN_OF_TEXTS = re.compile(
    "(.* )?(bos|eos|pad|unk|sep|cls|mask|start|end|stop|image|audio|video|think|thinking|tool|next|last) token"
)
_SECRET_VALUE = re.compile(r"(Bearer|Basic) \S{4,}|[a-z]+://[^/?#\s@]+@.*|-----BEGIN .*", re.I | re.DOTALL)
_FOLDERS = ("PWD", "OLDPWD")
_MASK = "***"

_remembered: set[str] = set()


def remember_secret(secret: str) -> None:
    """Have a key hidden by :func:`redact` from now on, for as long as the process lives."""
    if len(secret) >= _MIN_REMEMBERED_CHARS:
        _remembered.add(secret)


def list_known_secrets() -> dict[str, str]:
    """Return the keys that this process has read, and those in its environment, with words for each."""
    named = {
        one: f"the key in {name}"
        for name, one in os.environ.items()
        if name not in _FOLDERS and is_secret_name(name) and one
    }
    return {**dict.fromkeys(_remembered, "a key that is in use"), **named}


def redact(text: str, *, secret: str = "") -> str:
    """Return the text without the keys that this process knows, users in URLs, and what looks like a key.

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
    text = _PARAMETER.sub(_mask_parameter, _USER_IN_URL.sub(_MASK, text))
    text = _AUTHORIZATION.sub(rf"\1{_MASK}", _BEARER.sub(_MASK, text))
    return _KEY_FORM.sub(_MASK, _FIELD.sub(_mask_field, text))


def _mask_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"{name}={_MASK}" if is_secret_name(name) or name.lower() in _KEY_PARAMETERS else match[0]


def _mask_field(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    # In a sentence, what follows a colon is a word: a key is long, of letters and digits.
    is_word = len(value) < _MIN_REMEMBERED_CHARS or not re.search(r"\d", value) or not re.search(r"[A-Za-z]", value)
    return match[0] if is_word or not is_secret_name(name) else f"{name}{sign}{_MASK}"


def is_secret_name(name: str) -> bool:
    """Return whether what is called so is a key, by its words: ``openaiApiKey``, ``X-Auth-Token``, ``secret``."""
    words = [word.lower() for word in _WORD.findall(name)]
    spaced = " ".join(words)
    return (
        any(map(_SECRET_WORD.fullmatch, words))
        or _SECRET_PAIR.search(spaced) is not None
        or _SECRET_END.fullmatch(" ".join(words[-2:])) is not None
        or _SECRET_END.fullmatch("".join(words[-1:])) is not None
        or (_TOKEN.fullmatch(spaced) is not None and _TOKEN_OF_TEXTS.fullmatch(spaced) is None)
    )


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
    """Return where a JSON value looks as if it held a key, else ``None``.

    By a field's name, the form of a text, or a key in it that the process knows or has in its environment.
    """
    if isinstance(value, str):
        return (place or "value") if _looks_secret(value) else None
    inside: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        for name, one in value.items():
            own = f"{place}.{name}" if place else str(name)
            if (_has_text(one) and is_secret_name(str(name))) or _looks_secret(str(name)):
                return own
            inside.append((own, one))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        inside = [(f"{place}[{index}]", one) for index, one in enumerate(value)]
    return next((found for own, one in inside if (found := find_secret_field(one, place=own))), None)


def _has_text(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list | tuple) and any(map(_has_text, value))


def _looks_secret(text: str) -> bool:
    if _SECRET_VALUE.fullmatch(text) or _KEY_FORM.search(text) or _USER_IN_URL.search(text):
        return True
    # Settings are read before the keys are.
    return any(one in text for one in list_known_secrets() if len(one) >= _MIN_REMEMBERED_CHARS)
