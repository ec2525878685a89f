"""What a failed request means: worth asking again, the fault of this one request, or of the whole endpoint."""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

from drpo_graph.parsing import shorten

Remedy = Literal["retry", "climb", "merge_system", "reject", "refuse", "stop"]
"""Ask again; take the next rung of the reply ladder; put the system prompt into the user message; give up this one
request; treat it as refused by a content filter; stop the run."""

_RETRYABLE = frozenset({408, 409, 425, 429})
_OVERLOAD = frozenset({429, 503, 529})
_FORMAT_WORDS = re.compile(r"response_format|json_schema|json_object|structured|grammar|guided|tool|function", re.I)
_SYSTEM_WORDS = re.compile(r"system (role|message|prompt)|roles? must|only user and assistant", re.I)
_FILTER_WORDS = re.compile(r"content[_ ](filter|policy|management)", re.I)
_CONTEXT_WORDS = re.compile(r"context|too long|maximum.*(length|tokens)|exceed", re.I)


class CallFailure(NamedTuple):
    """One failed request, understood."""

    kind: str
    """``http_429``, ``timeout``, ``connection``, ...: what the events and the result count."""
    remedy: Remedy
    message: str
    retry_after_s: float | None = None
    is_overload: bool = False


def classify_failure(error: Exception) -> CallFailure | None:
    """Return what a client library's error means, or ``None`` when it is no failed request but a bug.

    Read by shape rather than by class, because every provider's client has classes of its own: an HTTP status where
    there is one, else a time-out or a broken connection.
    """
    message = shorten(str(error) or type(error).__name__, 300)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        headers = getattr(getattr(error, "response", None), "headers", None)
        return _classify_status(status, message, headers if isinstance(headers, Mapping) else {})
    if isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower():
        return CallFailure("timeout", "retry", message, is_overload=True)
    if isinstance(error, OSError) or re.search(r"connect|protocol|network|transport", type(error).__name__, re.I):
        cause = error.__cause__
        return CallFailure("connection", "retry", f"{message} ({shorten(str(cause), 160)})" if cause else message)
    return None


def _classify_status(status: int, message: str, headers: Mapping[str, str]) -> CallFailure:
    kind = f"http_{status}"
    if status in _RETRYABLE or status >= 500:
        # A 501 says "never", the other 5xx say "not now".
        remedy: Remedy = "climb" if status == 501 else "retry"
        return CallFailure(kind, remedy, message, _read_retry_after(headers), status in _OVERLOAD)
    if status in (400, 404, 413, 415, 422):
        return CallFailure(kind, _remedy_for_bad_request(status, message), message)
    return CallFailure(kind, "stop", message)


def _remedy_for_bad_request(status: int, message: str) -> Remedy:
    if status == 404:
        return "stop"
    if _FILTER_WORDS.search(message):
        return "refuse"
    if _CONTEXT_WORDS.search(message):
        return "reject"
    if _SYSTEM_WORDS.search(message):
        return "merge_system"
    return "climb" if _FORMAT_WORDS.search(message) else "reject"


def is_context_overflow(failure: CallFailure) -> bool:
    """Return whether the request was rejected for its length: the fault of this request, not of the settings."""
    return failure.remedy == "reject" and bool(_CONTEXT_WORDS.search(failure.message))


def _read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for, given as seconds or as a date."""
    value = headers.get("retry-after") or headers.get("Retry-After")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
