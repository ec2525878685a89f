"""What a failed request means: worth asking again, the fault of this one request, or of the whole endpoint."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from drpo_graph.models.retry_times import read_reset, read_told_wait
from drpo_graph.models.server_words import ServerWords, body_of, read_words
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

_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_REDIRECTED = (
    "the server redirects to another host, or to nowhere, and prompts are sent to no other: give the base URL of the "
    "server itself"
)
_RETRYABLE = frozenset({408, 409, 425, 429})
_OVERLOAD = frozenset({429, 503, 529})

_FORMAT_WORDS = re.compile(r"response_format|json_schema|json_object|structured|grammar|guided|tool|function", re.I)
_SYSTEM_WORDS = re.compile(
    r"\b(system|developer)['\"`]?[ _]?(role|message|prompt|instruction)|roles?\b.{0,40}\b(system|developer)\b"
    r"|roles? must|valid role|only .{0,20}\buser\b.{0,40}\b(assistant|model)\b.{0,20}\broles?\b"
    r"|\brole: .{0,40}\b(user|assistant)\b|first message.{0,30}\buser\b"
    r"|alternate (between )?['\"`]?(user|model|assistant)|input should be ['\"`]?(user|assistant)\b",
    re.I,
)
_STREAM_WORDS = re.compile(r"\bstream(s|ing)?\b", re.I)
_REFUSING_WORDS = re.compile(r"\b(not|cannot|never|un\w+|disabled)\b|n't\b", re.I)
_LOGPROB_WORDS = re.compile(r"logprob|log_prob|log prob", re.I)
_FILTER_WORDS = re.compile(r"content[_ ](filter|policy|management)|moderation|flagged", re.I)
_CONTEXT_WORDS = re.compile(
    r"context.?(length|window|size)|too long|maximum.{0,40}(length|tokens)"
    r"|(prompt|input|tokens).{0,40}exceed|exceed.{0,40}(length|tokens|context)"
    r"|max_new_tokens.{0,5} must be <=|input length should be|reduce the length|request (body |entity )?too large"
    r"|payload too large",
    re.I,
)
_NO_CHAT_WORDS = re.compile(
    r"chat template|not a chat model|not support.{0,20}chat|chat completions?.{0,30}not support", re.I
)
_NEVER_WORDS = re.compile(
    r"not (supported|implemented|enabled)|unsupported|(does|do) not support|requires? --|only .{0,80} are supported"
    r"|context.?(length|window|size)|(prompt|input) is too long",
    re.I,
)
"""What a status of 500 is no passing fault with: some servers give it for whatever goes wrong with a request."""
_QUOTA_WORDS = re.compile(
    r"insufficient[_ ](quota|balance|credits?|funds)|exceeded your current quota|credit balance is too low"
    r"|billing_hard_limit|out of credits",
    re.I,
)
_RATE_WORDS = re.compile(
    r"\brate[ _-]?limit(s|ed|ing)?[ _-]?(was |been |is )?(exceeded|reached|hit|error)"
    r"|exceeded (the |your )?rate[ _-]?limit"
    r"|\btoo many (requests|tokens per)|\bthrottl(ed|ing)|\b(requests|tokens) per (second|minute|hour|day)\b",
    re.I,
)
_TOO_LARGE_WORDS = re.compile(r"request too large", re.I)
_BROKEN_NAMES = re.compile(r"connect|protocol|network|transport|payload|redirects|^ClientError$", re.I)
_CIRCLE_NAMES = re.compile(r"^(TooManyRedirects|UnsupportedProtocol)$")
_EMPTY_WORDS = re.compile(r"^(|\w+|Connection error\.|Request timed out\.)$")
"""What says nothing of a broken connection but that it is one; a single word is the name of the error."""
_CUT_NAMES = re.compile(r"Disconnected|ConnectionReset|BrokenPipe|ClientOSError|Connect(ion)?Timeout")
_OWN_STATUS = re.compile(r"^400, message[:=]\s*")
_RESET_NAMES = re.compile(r"Disconnected|ConnectionReset|BrokenPipe")
_UNANSWERED_NAMES = re.compile(r"^(ConnectError|ConnectionRefusedError|ClientConnector\w*Error)$|Connect(ion)?Timeout")


class MalformedReplyError(Exception):
    """The server answered 200 with something that is no reply."""


class ReportedError(Exception):
    """The server answered 200, and in its answer with an error that has another status."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"status {status} in an answer of status 200")
        self.status_code = status
        self.body = body


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
    is_overlong: bool = False
    """Whether the request is longer than the model, or the server, takes."""

    @property
    def is_limit(self) -> bool:
        """Whether it only says that there were too many requests, or tokens, of late."""
        return self.kind == "http_429"

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
    words = read_words(error)
    message = _quote(words, secret)
    status = _status_of(error)
    if any(isinstance(one, MalformedReplyError) for one in _chain(error)):
        return CallFailure("malformed", "retry", message)
    if status is not None and not 100 <= status <= 599:
        return CallFailure("malformed", "retry", f"the server answers with the status {status}, which HTTP has not")
    if status in _REDIRECTING:
        return CallFailure(f"http_{status}", "stop", _REDIRECTED)
    if status is not None and status < 200:
        # A switch to another protocol, which one of the HTTP clients takes for an answer.
        return CallFailure("connection", "retry", "the server leaves HTTP in the middle of the request")
    if status is not None and status < 400:
        return CallFailure("malformed", "retry", message)
    if status is not None:
        failure = CallFailure(f"http_{status}", "stop", message)
        return _classify_status(status, words, failure, _headers_of(error), body_of(error))
    return _classify_broken(error, message, secret) or _classify_unsent(error, message)


def is_context_overflow(failure: CallFailure) -> bool:
    """Return whether the request was rejected for its length: the fault of this request, not of the settings."""
    return failure.remedy == "reject" and (failure.kind == OVERFLOW or failure.is_overlong)


def is_without_chat(failure: CallFailure) -> bool:
    """Return whether a chat failed because the model, or its server, takes none."""
    is_route_missing = failure.kind in ("http_404", "http_405", "http_501")
    return is_route_missing or bool(_NO_CHAT_WORDS.search(failure.message))


def is_no_http(error: Exception) -> bool:
    """Return whether aiohttp takes an answer for no HTTP: it is stricter than others, and tells a status of 400."""
    return any(kind.__name__ == "HttpProcessingError" for one in _chain(error) for kind in type(one).__mro__)


def refuses_streams(error: Exception) -> bool:
    """Return whether a server says that it does not stream."""
    if _status_of(error) not in (400, 405, 422, 501):
        return False
    message = read_words(error).message
    return bool(_STREAM_WORDS.search(message) and _REFUSING_WORDS.search(message))


def hides(secret: str, error: Exception) -> bool:
    """Return whether the error's own text would give the key away."""
    return len(secret) >= MIN_SECRET_CHARS and any(secret in str(one) for one in _chain(error))


def _quote(words: ServerWords, secret: str) -> str:
    """Return what was said on one line, without the key."""
    return shorten(redact(words.message, secret=secret), 300)


def _status_of(error: Exception) -> int | None:
    """Return the status of the answer that an error is about, wherever a client keeps it."""
    if is_no_http(error):  # Its status is of the client's own making.
        return None
    for source in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and (100 <= status <= 599 or name == "status_code"):
                return status
    return None


def _classify_status(
    status: int, words: ServerWords, failure: CallFailure, headers: Mapping[str, str], body: object
) -> CallFailure:
    """Return what a status and the words with it mean, given the failure as one that stops the run."""
    said = f"{words.code} {words.message}"
    wait_s = read_told_wait(headers, words.message)
    # Of an account that is spent, no words say when it will have more; a gateway's header may, for whatever went wrong.
    if _QUOTA_WORDS.search(said) and not read_told_wait({}, words.message):
        return failure._replace(kind="quota")
    if status in (400, 403) and _RATE_WORDS.search(said):
        # Some gateways have no other status for it.
        status, failure = 429, failure._replace(kind="http_429")
    if status == 429 and _TOO_LARGE_WORDS.search(words.message):
        # Larger than what a whole window allows: no wait makes it fit.
        return failure._replace(remedy="reject", is_overlong=True)
    if status in (400, 413, 415, 422) or (status == 500 and _NEVER_WORDS.search(said)):
        refused = find_refused(words.message, body, param=words.param)
        remedy = _remedy_for_bad_request(said, words.param, refused)
        is_overlong = status == 413 or bool(_CONTEXT_WORDS.search(said))
        if status != 500 or remedy != "reject" or is_overlong:
            return failure._replace(remedy=remedy, is_overlong=remedy == "reject" and is_overlong, refused=refused)
    if status in _RETRYABLE or status >= 500:
        # A 501 says "never", the other 5xx say "not now".
        return failure._replace(
            remedy="climb" if status == 501 else "retry",
            # How long until a window ends says nothing of a server that is not there.
            retry_after_s=wait_s or (read_reset(headers, words.message) if status == 429 else None),
            is_overload=status in _OVERLOAD,
        )
    if status == 403 and _FILTER_WORDS.search(said):
        return failure._replace(remedy="refuse")
    if status == 403 and _LOGPROB_WORDS.search(said):
        return failure._replace(remedy="lower_logprobs")
    return failure


def _remedy_for_bad_request(text: str, param: str, refused: Sequence[str]) -> Remedy:
    # The server names what it objects to; only then do its words count, which may quote the request.
    named = (param, *refused)
    if any(one.startswith(("response_format", "tool", "function")) for one in named):
        return "climb"
    if any(one.startswith(("logprobs", "top_logprobs")) for one in named):
        return "lower_logprobs"
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
    if any(_CIRCLE_NAMES.search(name) for name in names):
        return CallFailure("redirect", "stop", _REDIRECTED)
    is_cut = any(_CUT_NAMES.search(name) for name in names)
    if not is_cut and any("timeout" in name.lower() for name in names):
        return CallFailure("timeout", "retry", message, is_overload=True)
    # Some clients call a connection that was cut a connect time-out, though the server had the request.
    is_reset = any(_RESET_NAMES.search(name) for name in names)
    is_unanswered = not is_reset and any(_UNANSWERED_NAMES.search(name) for name in names)
    return CallFailure("connection", "retry", _tell_broken(error, secret), is_unreached=is_unanswered)


def _tell_broken(error: Exception, secret: str) -> str:
    """Return what happened to a connection, in the words of who saw it: those who pass it on call it anything."""
    told = [words.message for one in _chain(error) if (words := read_words(one)).message]
    said = next((one for one in reversed(told) if not _EMPTY_WORDS.search(one)), told[0])
    if said.startswith("<"):  # What had come by then, which is no words.
        return "the server closed the connection"
    return _quote(ServerWords(_OWN_STATUS.sub("", said)), secret)


def _classify_unsent(error: Exception, message: str) -> CallFailure | None:
    """Return what a client that knows its provider's models refuses to send; ``None`` where the error is a bug."""
    refused = find_refused(str(error), None) if isinstance(error, TypeError | ValueError) else ()
    return CallFailure("not_sent", "adapt", message, refused=refused) if refused else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__


def _headers_of(error: Exception) -> dict[str, str]:
    for source in (getattr(error, "response", None), error):
        headers = getattr(source, "headers", None)
        if isinstance(headers, Mapping):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}
