"""What a failed request means: worth asking again, the fault of this one request, or of the whole endpoint."""

import email.utils
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import Literal, NamedTuple

from drpo_graph.models.terms import find_refused
from drpo_graph.safety.redaction import MIN_SECRET_CHARS, redact
from drpo_graph.safety.texts import shorten

Remedy = Literal["retry", "climb", "merge_system", "lower_logprobs", "adapt", "complete", "reject", "refuse", "stop"]
"""Ask again; take the next rung of the reply ladder; put the system prompt into the user message; ask for fewer token
probabilities, or none; leave out or rename the fields that were refused; ask for a text completion; give up this one
request; treat it as refused by a content filter; stop the run."""

MAX_QUOTED = 2000
"""Characters of a server's answer that an error quotes: more than messages keep, so that a key is not cut before it is
hidden."""

OVERFLOW = "context_overflow"
"""The kind of failure of a request that was seen to be longer than the model's context, and was not sent."""

_RETRYABLE = frozenset({408, 409, 425, 429})
_OVERLOAD = frozenset({429, 503, 529})
_MAX_RETRY_AFTER_S = 3600.0

_FORMAT_WORDS = re.compile(r"response_format|json_schema|json_object|structured|grammar|guided|tool|function", re.I)
_SYSTEM_WORDS = re.compile(r"system (role|message|prompt)|roles? must|only user and assistant", re.I)
_LOGPROB_WORDS = re.compile(r"logprob|log_prob|log prob", re.I)
_FILTER_WORDS = re.compile(r"content[_ ](filter|policy|management)|moderation|flagged", re.I)
_CONTEXT_WORDS = re.compile(
    r"context.?(length|window|size)|too long|maximum.{0,40}(length|tokens)"
    r"|(prompt|input|tokens).{0,40}exceed|exceed.{0,40}(length|tokens|context)",
    re.I,
)
_NO_CHAT_WORDS = re.compile(
    r"chat template|not a chat model|not support.{0,20}chat|chat completions?.{0,30}not support", re.I
)
_QUOTA_WORDS = re.compile(r"insufficient_quota|exceeded your current quota", re.I)
_BROKEN_NAMES = re.compile(r"connect|protocol|network|transport|payload|^ClientError$", re.I)
_CUT_NAMES = re.compile(r"Disconnected|ConnectionReset|BrokenPipe|ClientOSError|Connect(ion)?Timeout")
_RESET_NAMES = re.compile(r"Disconnected|ConnectionReset|BrokenPipe")
_UNANSWERED_NAMES = re.compile(r"^(ConnectError|ConnectionRefusedError|ClientConnector\w*Error)$|Connect(ion)?Timeout")


class MalformedReplyError(Exception):
    """The server answered 200 with something that is no reply."""


class CallFailure(NamedTuple):
    """One failed request, understood."""

    kind: str
    """``http_429``, ``timeout``, ``connection``, ``malformed``: what the events and the result count."""
    remedy: Remedy
    message: str
    retry_after_s: float | None = None
    is_overload: bool = False
    is_unreached: bool = False
    """Whether nobody took the connection: no fault of the request."""
    refused: tuple[str, ...] = ()
    """The fields of the request that the server does not take, where it names them."""

    @property
    def is_of_endpoint(self) -> bool:
        """Whether it may mean that the endpoint is lost; what it says about the request or its rate does not."""
        return self.remedy == "retry" and (self.kind in ("connection", "timeout") or self.kind.startswith("http_5"))


def classify_failure(error: Exception, *, secret: str = "") -> CallFailure | None:
    """Return what a client library's error means, or ``None`` when it is no failed request but a bug.

    Read by shape rather than by class, because every provider's client has classes of its own: an HTTP status where
    there is one, else a time-out or a broken connection.

    Args:
        error: What the client raised.
        secret: The key that was sent; servers have been seen to echo it, and messages never hold it.
    """
    message = _describe(error, secret)
    status = _status_of(error)
    if isinstance(error, MalformedReplyError) or (status is not None and status < 300):
        return CallFailure("malformed", "retry", message)
    if status is not None:
        return _classify_status(status, message, error)
    return _classify_broken(error, message, secret)


def is_context_overflow(failure: CallFailure) -> bool:
    """Return whether the request was rejected for its length: the fault of this request, not of the settings."""
    is_told = failure.kind == OVERFLOW or bool(_CONTEXT_WORDS.search(failure.message))
    return failure.remedy == "reject" and is_told


def is_without_chat(failure: CallFailure) -> bool:
    """Return whether a chat failed because the model, or its server, takes none."""
    is_route_missing = failure.kind in ("http_404", "http_405", "http_501")
    return is_route_missing or bool(_NO_CHAT_WORDS.search(failure.message))


def hides(secret: str, error: Exception) -> bool:
    """Return whether the error's own text would give the key away."""
    return len(secret) >= MIN_SECRET_CHARS and any(secret in str(one) for one in _chain(error))


def _describe(error: BaseException, secret: str) -> str:
    """Return the server's own words where the error carries them, else the error's, on one line and without the key."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    text = said if isinstance(said, str) and said.strip() else str(error) or type(error).__name__
    return shorten(redact(text, secret=secret), 300)


def _status_of(error: Exception) -> int | None:
    for source in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 100 <= status <= 599:
                return status
    return None


def _classify_status(status: int, message: str, error: Exception) -> CallFailure:
    kind = f"http_{status}"
    if _QUOTA_WORDS.search(f"{_code_of(error)} {message}"):
        return CallFailure("quota", "stop", message)
    if status in _RETRYABLE or status >= 500:
        # A 501 says "never", the other 5xx say "not now".
        remedy: Remedy = "climb" if status == 501 else "retry"
        return CallFailure(kind, remedy, message, _read_retry_after(_headers_of(error)), status in _OVERLOAD)
    if status == 403 and _FILTER_WORDS.search(message):
        return CallFailure(kind, "refuse", message)
    if status == 403 and _LOGPROB_WORDS.search(message):
        return CallFailure(kind, "lower_logprobs", message)
    if status in (400, 413, 415, 422):
        refused = find_refused(message, getattr(error, "body", None), param=_param_of(error))
        return CallFailure(kind, _remedy_for_bad_request(message, error, refused), message, refused=refused)
    return CallFailure(kind, "stop", message)


def _param_of(error: Exception) -> str:
    return str(getattr(error, "param", None) or "")


def _remedy_for_bad_request(message: str, error: Exception, refused: Sequence[str]) -> Remedy:
    # The server names what it objects to; only then do its words count, which may quote the request.
    named = (_param_of(error), *refused)
    if any(one.startswith(("response_format", "tool", "function")) for one in named):
        return "climb"
    if any(one.startswith(("logprobs", "top_logprobs")) for one in named):
        return "lower_logprobs"
    text = f"{_code_of(error)} {message}"
    if _FILTER_WORDS.search(text):
        return "refuse"
    if _CONTEXT_WORDS.search(text):
        return "reject"
    if refused:
        return "adapt"
    if _NO_CHAT_WORDS.search(text):
        return "complete"
    if _LOGPROB_WORDS.search(text):
        return "lower_logprobs"
    if _SYSTEM_WORDS.search(text):
        return "merge_system"
    return "climb" if _FORMAT_WORDS.search(text) else "reject"


def _classify_broken(error: Exception, message: str, secret: str) -> CallFailure | None:
    """Return a time-out or a broken connection, or ``None`` when the error is neither."""
    own_names = [kind.__name__ for kind in type(error).__mro__]
    # A file that is missing is an OSError too, and no connection.
    is_network = isinstance(error, OSError) and error.filename is None
    if not is_network and not any(_BROKEN_NAMES.search(name) or "timeout" in name.lower() for name in own_names):
        return None
    names = [kind.__name__ for one in _chain(error) for kind in type(one).__mro__]
    is_cut = any(_CUT_NAMES.search(name) for name in names)
    if not is_cut and any("timeout" in name.lower() for name in names):
        return CallFailure("timeout", "retry", message, is_overload=True)
    cause = error.__cause__
    detail = f" ({_describe(cause, secret)})" if cause is not None else ""
    # Some clients call a connection that was cut a connect time-out, though the server had the request.
    is_reset = any(_RESET_NAMES.search(name) for name in names)
    is_unanswered = not is_reset and any(_UNANSWERED_NAMES.search(name) for name in names)
    return CallFailure("connection", "retry", shorten(f"{message}{detail}", 300), is_unreached=is_unanswered)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__


def _code_of(error: Exception) -> object:
    """Return the error code in the server's answer, e.g. ``context_length_exceeded``."""
    return vars(error).get("code") or ""


def _headers_of(error: Exception) -> dict[str, str]:
    for source in (getattr(error, "response", None), error):
        headers = getattr(source, "headers", None)
        if isinstance(headers, Mapping):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}


def _read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for, given as seconds or as a date; an hour at most."""
    wait_s = _read_number(headers.get("retry-after-ms"), scale=0.001)
    value = headers.get("retry-after")
    if wait_s is None:
        wait_s = _read_number(value)
    if wait_s is None and value:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        wait_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return None if wait_s is None else min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def _read_number(value: str | None, *, scale: float = 1.0) -> float | None:
    try:
        number = float(value) * scale if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
