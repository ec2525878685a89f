"""What a server says in an error, wherever in its answer that stands: one reader for every client library.

OpenAI's ``{"error": {"message": ...}}`` is one form of many: FastAPI's ``detail``, Google's list, Mistral's nested
``message``, a gateway's page, an answer within an answer.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_MAX_READ = 100_000
"""Characters of an answer that are looked at."""
_MAX_ITEMS = 5
_MAX_DEPTH = 6

_UNEXPLAINED = "the server's answer is empty"

_WORD_FIELDS = ("message", "msg", "detail", "errordescription", "faultstring", "error", "errors")
_OTHER_FIELDS = ("details", "errormessage", "reason", "description", "title", "fault")
"""Read where none of the first has words; names without underscores, in small letters."""
_CODE_FIELDS = ("code", "status", "type", "errortype", "errorcode")
_STATUS_FIELDS = ("code", "status", "statuscode", "httpstatus", "errorcode")
_STATUS_BY_CODE = {
    "rate.?limit|too.?many.?requests|throttl|insufficient.?quota|resource.?exhausted": 429,
    "overloaded": 529,
    "authentication|invalid.?api.?key|unauthorized|unauthenticated": 401,
    "permission|forbidden": 403,
    "unavailable": 503,
    "timeout|deadline": 504,
    "server.?error|internal": 500,
    "invalid.?request|invalid.?argument|bad.?request|context.?length": 400,
}
"""What a code means that is no number: the first that it holds."""
_UNREAD = re.compile(r"<(script|style|head(?!er))\b.*?</\1\s*>", re.I | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.I | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


class ServerWords(NamedTuple):
    """What an error's answer says."""

    message: str
    """In full, as the server put it."""
    code: str = ""
    """Codes and types, e.g. ``context_length_exceeded``; empty where it gives none."""
    param: str = ""
    """The field of the request that it objects to, e.g. ``response_format``; empty where it names none."""


def read_words(error: BaseException) -> ServerWords:
    """Return what a server said, as far as a client's error holds its answer; else the error's own words."""
    body = body_of(error)
    texts: list[str] = []
    for text in _texts_in(body):
        if not any(text in other for other in texts):
            texts.append(text)
    # What has none of the fields that we know is quoted as it is.
    message = "; ".join(texts) or (json.dumps(body, default=str) if body else "")
    if not message and _text_of(error) == "":
        message = _UNEXPLAINED
    code, param = " ".join(dict.fromkeys(_codes_in(body))), next(_params_in(body), "")
    return ServerWords(message or str(error) or type(error).__name__, code, param)


def read_status(body: object) -> int | None:
    """Return the status of the error that an answer holds: a number, or what its codes mean; ``None`` for neither."""
    for fields in _objects_in(body):
        for name in _STATUS_FIELDS:
            told = fields.get(name)
            number = int(told) if isinstance(told, str) and re.fullmatch(r"[45]\d\d", told) else told
            if isinstance(number, int) and 400 <= number <= 599:
                return number
    codes = " ".join(_codes_in(body))
    return next((status for words, status in _STATUS_BY_CODE.items() if re.search(words, codes, re.I)), None)


def body_of(error: BaseException) -> object:
    """Return the answer that an error holds: the whole of it, of which some clients keep only a part themselves."""
    if text := _text_of(error):
        return _decode(text[:_MAX_READ])
    body = getattr(error, "body", None)
    return _decode(body[:_MAX_READ]) if isinstance(body, str) else body


def _text_of(error: BaseException) -> str | None:
    try:
        text = getattr(getattr(error, "response", None), "text", None)
    except RuntimeError:  # A stream that was not read.
        return None
    return text.strip() if isinstance(text, str) else None


def _decode(text: str) -> object:
    """Return the JSON array or object in a text, else the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            value: object = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value
    return text


def _texts_in(value: object, depth: int = 0) -> Iterator[str]:
    """Yield the words in an answer, or in a part of it, in order of weight."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        inner = _decode(value)
        found = [_strip_page(value)] if isinstance(inner, str) else list(_texts_in(inner, depth + 1)) or [value.strip()]
        yield from filter(None, found)
    elif isinstance(value, Mapping):
        yield from _texts_of_object(_fold(value), depth)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value[:_MAX_ITEMS]:
            yield from _texts_in(one, depth + 1)


def _texts_of_object(fields: Mapping[str, object], depth: int) -> Iterator[str]:
    words = [text for name in _WORD_FIELDS for text in _texts_in(fields.get(name), depth + 1)]
    words = words or [text for name in _OTHER_FIELDS for text in _texts_in(fields.get(name), depth + 1)]
    if not words and depth:
        # Named faults: {"errors": {"Temperature": ["must be at most 2"]}}.
        words = [f"{name}: {text}" for name in fields for text in _texts_in(fields[name], _MAX_DEPTH - 1)]
    place = _dotted(fields.get("loc"))
    yield from (f"{place}: {text}" if place else text for text in words)
    metadata = fields.get("metadata")
    if isinstance(metadata, Mapping):  # A router's "provider returned error", and what the provider said.
        yield from _texts_in(metadata.get("raw"), depth + 1)


def _fold(fields: Mapping[object, object]) -> dict[str, object]:
    return {str(name).lower().replace("_", ""): value for name, value in fields.items()}


def _dotted(loc: object) -> str:
    """Return a place in a request as FastAPI gives it, ``["body", "messages", 0]``, as ``messages.0``."""
    if not isinstance(loc, Sequence) or isinstance(loc, str | bytes):
        return ""
    return ".".join(str(part) for part in loc if part != "body")


def _objects_in(value: object, depth: int = 0) -> Iterator[dict[str, object]]:
    """Yield the objects of an answer that may say what is wrong, the outer ones first."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        fields = _fold(value)
        yield fields
        for name in (*_WORD_FIELDS, "fault"):
            yield from _objects_in(fields.get(name), depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for one in value[:_MAX_ITEMS]:
            yield from _objects_in(one, depth + 1)


def _codes_in(body: object) -> Iterator[str]:
    for fields in _objects_in(body):
        yield from (code for name in _CODE_FIELDS if isinstance(code := fields.get(name), str))


def _params_in(body: object) -> Iterator[str]:
    for fields in _objects_in(body):
        param = fields.get("param")
        named = param if isinstance(param, str) else _dotted(fields.get("loc"))
        if named:
            yield named


def _strip_page(text: str) -> str:
    """Return a text, or what one reads on a page of HTML."""
    if not re.match(r"\s*<(!doctype|html|head|body|h1)\b", text, re.I):
        return text.strip()
    title = _TITLE.search(text)
    parts = [title[1] if title else "", *_TAG.split(_UNREAD.sub(" ", text))]
    seen = dict.fromkeys(" ".join(html.unescape(part).split()) for part in parts)
    return " ".join(part for part in seen if part)
