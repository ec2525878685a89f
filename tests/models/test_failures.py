"""What a failed request means: read by shape, never fooled by a bug."""

import asyncio
import socket
import subprocess
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from yarl import URL

from drpo_graph.models.failures import CallFailure, MalformedReplyError, classify_failure, hides, is_context_overflow

REQUEST = httpx.Request("POST", "http://test/v1/chat/completions")


def status_error(status: int, message: str = "no", *, headers: dict[str, str] | None = None, **body: Any) -> Exception:
    response: Any = httpx.Response(status, request=REQUEST, headers=headers)
    kind = openai.BadRequestError if status == 400 else openai.APIStatusError
    return kind(f"Error code: {status}", response=response, body={"message": message, **body})


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def classify(error: Exception) -> CallFailure:
    failure = classify_failure(error)
    assert failure is not None
    return failure


CONNECTION = openai.APIConnectionError(request=REQUEST)
TIMEOUT = openai.APITimeoutError(request=REQUEST)
KEY_INFO: Any = aiohttp.client_reqrep.ConnectionKey("test", 80, False, True, None, None, None, "test")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CONNECTION, "connection"),
        (caused(openai.APIConnectionError(request=REQUEST), httpx.ReadError("cut")), "connection"),
        (TIMEOUT, "timeout"),
        (caused(openai.APITimeoutError(request=REQUEST), httpx.ReadTimeout("slow")), "timeout"),
        # Nobody is there: a connection that was never made, whatever the client calls it.
        (caused(openai.APITimeoutError(request=REQUEST), httpx.ConnectTimeout("gone")), "connection"),
        (
            caused(
                openai.APITimeoutError(request=REQUEST),
                caused(httpx.ConnectTimeout("cut"), aiohttp.ServerDisconnectedError()),
            ),
            "connection",
        ),
        (httpx.ReadError("cut"), "connection"),
        (httpx.WriteError("cut"), "connection"),
        (httpx.RemoteProtocolError("cut"), "connection"),
        (httpx.ConnectError("gone"), "connection"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (aiohttp.ClientPayloadError("cut"), "connection"),
        (aiohttp.ServerDisconnectedError(), "connection"),
        (aiohttp.ClientConnectorError(KEY_INFO, OSError("gone")), "connection"),
        (aiohttp.SocketTimeoutError("slow"), "timeout"),
        (aiohttp.ConnectionTimeoutError("gone"), "connection"),
        (TimeoutError(), "timeout"),
        (asyncio.TimeoutError(), "timeout"),  # noqa: UP041
        (ConnectionResetError(104, "reset"), "connection"),
        (BrokenPipeError(), "connection"),
        (OSError(113, "No route to host"), "connection"),
        (socket.gaierror(-2, "Name or service not known"), "connection"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_broken_connections_and_time_outs_are_asked_again(error: Exception, kind: str) -> None:
    failure = classify(error)
    assert (failure.kind, failure.remedy) == (kind, "retry")
    assert failure.is_overload == (kind == "timeout")


@pytest.mark.parametrize(
    ("error", "is_unreached"),
    [
        (
            caused(
                openai.APITimeoutError(request=REQUEST),
                caused(httpx.ConnectTimeout("cut"), ConnectionResetError(104, "reset")),
            ),
            False,
        ),
        (
            caused(
                openai.APIConnectionError(request=REQUEST),
                caused(httpx.ConnectError("cut"), aiohttp.ServerDisconnectedError()),
            ),
            False,
        ),
        (
            caused(
                openai.APIConnectionError(request=REQUEST),
                caused(httpx.ConnectError("cut"), BrokenPipeError(32, "pipe")),
            ),
            False,
        ),
        (ConnectionResetError(104, "reset"), False),
        (httpx.ConnectTimeout("gone"), True),
        (httpx.ConnectError("refused"), True),
        (ConnectionRefusedError(111, "refused"), True),
        (aiohttp.ClientConnectorError(KEY_INFO, OSError("gone")), True),
    ],
)
def test_a_connection_that_was_cut_had_been_taken(error: Exception, is_unreached: bool) -> None:
    failure = classify(error)
    assert (failure.kind, failure.is_unreached) == ("connection", is_unreached)


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("score"),
        TypeError("NoneType"),
        AttributeError("connect"),
        ValueError("bad"),
        IndexError(),
        AssertionError(),
        RuntimeError("timeout of the connection"),
        FileNotFoundError(2, "No such file", "prompt.md"),
        PermissionError(13, "Permission denied", "/etc/shadow"),
        subprocess.CalledProcessError(1, "x"),
        ZeroDivisionError(),
    ],
    ids=lambda bug: type(bug).__name__,
)
def test_bug_is_no_failed_request(bug: Exception) -> None:
    assert classify_failure(bug) is None
    assert classify_failure(caused(type("Wrapped", (Exception,), {})("x"), TimeoutError())) is None


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_passing_statuses_are_asked_again(status: int) -> None:
    failure = classify(status_error(status))
    assert (failure.kind, failure.remedy) == (f"http_{status}", "retry")
    assert failure.is_overload == (status in (429, 503, 529))


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 418, 307])
def test_lasting_statuses_stop_the_run(status: int) -> None:
    assert classify(status_error(status)).remedy == "stop"


def test_status_is_found_wherever_the_client_keeps_it() -> None:
    info: Any = aiohttp.RequestInfo(URL("http://test"), "POST", {}, URL("http://test"))
    for error in (
        httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(503)),
        aiohttp.ClientResponseError(info, (), status=503, headers={"Retry-After": "3"}),
        type("GoogleError", (Exception,), {"code": 503})("busy"),
        type("AnthropicError", (Exception,), {"status_code": 503})("busy"),
    ):
        assert classify(error).kind == "http_503"
    assert classify_failure(type("Odd", (Exception,), {"code": "context"})("x")) is None
    assert classify_failure(type("Odd", (Exception,), {"code": 7})("x")) is None


@pytest.mark.parametrize(
    ("message", "body", "remedy"),
    [
        ("'json_schema' is not supported", {}, "climb"),
        ("Unsupported parameter", {"param": "response_format"}, "climb"),
        ("bad property", {"param": "tools[0].function.parameters"}, "climb"),
        ("Invalid schema for response_format: In context=()", {"param": "response_format"}, "climb"),
        ("System role not supported", {"param": "messages"}, "merge_system"),
        ("Conversation roles must alternate user/assistant", {}, "merge_system"),
        (
            "[{'type': 'literal_error', 'loc': ('body', 'messages', 0, 'role'), 'msg': \"Input should be 'user' or "
            "'assistant'\", 'input': 'system'}]",
            {},
            "merge_system",
        ),
        ("Input should be 'user', 'assistant' or 'tool'", {}, "merge_system"),
        ("The response was filtered due to content_filter", {}, "refuse"),
        ("Your input was flagged by moderation", {}, "refuse"),
        ("This model's maximum context length is 512 tokens", {}, "reject"),
        ("the request exceeds the available context size", {}, "reject"),
        ("too many", {"code": "context_length_exceeded"}, "reject"),
        ("temperature must be below 2", {}, "reject"),
    ],
)
def test_bad_request_says_what_to_do_otherwise(message: str, body: dict[str, Any], remedy: str) -> None:
    failure = classify(status_error(400, message, **body))
    assert failure.remedy == remedy
    assert failure.message == message


def test_length_is_told_from_other_faults_of_a_request() -> None:
    assert is_context_overflow(classify(status_error(400, "prompt is too long: 9 tokens > 5")))
    assert not is_context_overflow(classify(status_error(400, "max_tokens must be at most 4096")))
    assert not is_context_overflow(classify(status_error(400, "temperature must be below 2")))


def test_forbidden_text_is_refused_and_forbidden_access_stops() -> None:
    assert classify(status_error(403, "Input flagged by moderation")).remedy == "refuse"
    assert classify(status_error(403, "Project has no access")).remedy == "stop"


def test_spent_quota_is_no_passing_429() -> None:
    failure = classify(status_error(429, "You have no credit", code="insufficient_quota"))
    assert (failure.kind, failure.remedy) == ("quota", "stop")
    assert classify(status_error(429, "Rate limit reached")).remedy == "retry"


def test_unimplemented_format_takes_the_next_rung() -> None:
    assert classify(status_error(501)).remedy == "climb"
    assert not classify(status_error(501)).is_of_endpoint
    assert classify(status_error(500)).is_of_endpoint


def test_answer_that_is_no_reply_is_asked_for_again() -> None:
    undecodable = ValueError("Expecting value")
    undecodable.response = httpx.Response(200)
    for error in (MalformedReplyError("a page"), undecodable):
        failure = classify(error)
        assert (failure.kind, failure.remedy) == ("malformed", "retry")


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"RETRY-AFTER-MS": "250"}, 0.25),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 -0000"}, None),
        ({"Retry-After": "Thu, 01 Jan 2970 00:00:00 GMT"}, 3600.0),
        ({"Retry-After": "never"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
def test_wait_is_read_from_seconds_and_dates(headers: dict[str, str], wait_s: float | None) -> None:
    assert classify(status_error(429, headers=headers)).retry_after_s == wait_s


def test_message_is_its_cause_on_one_line_without_the_key() -> None:
    error = caused(openai.APIConnectionError(request=REQUEST), OSError("cannot\nreach sk-secret"))
    failure = classify_failure(error, secret="sk-secret")
    assert failure is not None
    assert failure.message == "cannot reach ***"
    assert hides("sk-secret", error)
    assert not hides("", error)
    assert len(classify(status_error(500, "x" * 5000)).message) <= 300


def test_placeholder_keys_blot_out_no_words() -> None:
    failure = classify_failure(status_error(400, "a bad parameter"), secret="a")
    assert failure is not None
    assert failure.message == "a bad parameter"
