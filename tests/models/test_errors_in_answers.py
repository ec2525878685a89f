"""Errors in odd places and replies in odd forms: each has its meaning, and none is an error of ours."""

import json
import warnings
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from drpo_graph.events.schema import Warned
from drpo_graph.models.failures import CallFailure, MalformedReplyError, classify_failure
from drpo_graph.models.request import Reply, Request
from drpo_graph.models.transport import LangChainTransport
from drpo_graph.records import Usage
from tests.models.test_bounded_bodies import CALLS, ask, open_transport
from tests.models.test_failures import status_error
from tests.support.byte_server import Peer, Play, serve_raw
from tests.support.roles import QUESTION, open_desk

CHOICE = {"index": 0, "text": "hello", "message": {"content": "hello"}, "finish_reason": "stop"}


def answer(body: object, *headers: str, kind: str = "json") -> Play:
    """Return a player of one answer: a text as it is, else as JSON."""

    async def play(peer: Peer) -> None:
        await peer.answer(body if isinstance(body, str) else json.dumps(body), *headers, kind=kind)

    return play


async def failure_of(play: Play, call: str) -> CallFailure:
    async with serve_raw(play) as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await ask(open_transport(server), call)
    failure = classify_failure(caught.value)
    assert failure is not None
    return failure


# Errors of status 200


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        ({"code": 429, "message": "Come back later"}, "http_429", "retry"),
        ({"code": "429", "message": "Come back later"}, "http_429", "retry"),
        ({"status": 503, "message": "Come back later"}, "http_503", "retry"),
        ({"code": 401, "message": "Come back later"}, "http_401", "stop"),
        ({"code": 400, "message": "maximum context length. Come back later"}, "http_400", "reject"),
        ({"type": "rate_limit_error", "message": "Come back later"}, "http_429", "retry"),
        ({"type": "overloaded_error", "message": "Come back later"}, "http_529", "retry"),
        ({"code": "insufficient_quota", "message": "Come back later"}, "quota", "stop"),
        ({"type": "server_error", "code": None, "message": "Come back later"}, "http_500", "retry"),
        ({"code": 7, "message": "Come back later"}, "malformed", "retry"),
        ({"message": "Come back later"}, "malformed", "retry"),
        ("Come back later", "malformed", "retry"),
    ],
)
async def test_error_of_status_200_has_the_status_that_it_tells(
    error: object, kind: str, remedy: str, call: str
) -> None:
    plays = [answer({"error": error})]
    if "stream" in call:
        plays.append(answer(f"data: {json.dumps({'error': error})}\n\n", kind="events"))
    for play in plays:
        failure = await failure_of(play, call)
        assert (failure.kind, failure.remedy) == (kind, remedy)
        assert "Come back later" in failure.message


@pytest.mark.parametrize("call", ["chat stream", "completions stream"])
async def test_error_in_the_middle_of_a_stream_has_its_status(call: str) -> None:
    part = {"choices": [{"index": 0, "delta": {"content": "hel"}, "text": "hel"}]}
    error = {"error": {"message": "Come back later", "type": "overloaded_error"}}
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in (part, error))
    assert (await failure_of(answer(text, kind="events"), call)).kind == "http_529"


# Forms of a reply


@pytest.mark.parametrize("kind", ["json", "events", "html"])
@pytest.mark.parametrize("call", CALLS)
async def test_events_are_read_whatever_they_are_declared_as(call: str, kind: str) -> None:
    part = {"choices": [{"index": 0, "delta": {"content": "hello"}, "text": "hello", "finish_reason": "stop"}]}
    async with serve_raw(answer(f"data: {json.dumps(part)}\n\ndata: [DONE]\n\n", kind=kind)) as server:
        assert await ask(open_transport(server), call) == "hello"


async def test_content_in_parts_is_streamed_without_a_warning() -> None:
    parts = [
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "hel"}]}}]},
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "lo"}], "role": 7}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": "many"}},
    ]
    text = "".join(f"data: {json.dumps(part)}\n\n" for part in parts)
    async with serve_raw(answer(text, kind="events")) as server:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert await ask(open_transport(server), "chat stream") == "hello"


# What servers say


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize(
    "words",
    [
        "Rate limit exceeded for model m",
        "rate_limit_exceeded",
        "You have exceeded your rate limit",
        "Too many requests, slow down",
        "Request was throttled. Try again in 2s",
        "Limit of 60 requests per minute",
    ],
)
def test_limit_is_one_whatever_its_status(words: str, status: int) -> None:
    failure = classify_failure(status_error(status, words))
    assert failure is not None
    assert (failure.kind, failure.remedy, failure.is_limit) == ("http_429", "retry", True)
    assert failure.retry_after_s == (2.0 if "2s" in words else None)


@pytest.mark.parametrize("words", ["temperature must be below 2", "the rate of the limit", "no access to the project"])
def test_other_refusals_are_no_limits(words: str) -> None:
    for status in (400, 403):
        failure = classify_failure(status_error(status, words))
        assert failure is not None
        assert failure.kind == f"http_{status}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": "invalid_client", "error_description": "The client is unknown"}, "The client is unknown"),
        ({"fault": {"faultstring": "Quota is used up", "detail": {"errorcode": "policies.x"}}}, "Quota is used up"),
        ({"Fault": {"faultcode": "soap:Server", "faultstring": "Not today"}}, "Not today"),
    ],
)
async def test_words_are_found_in_oauth_and_soap(body: object, told: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.answer(json.dumps(body), status="401 Unauthorized")

    assert told in (await failure_of(play, "chat")).message


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error", "401 Unauthorized", "200 OK"])
async def test_empty_answer_is_told_as_one(status: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.answer("", status=status)

    assert (await failure_of(play, "chat")).message == "the server's answer is empty"


# Usage


async def send(play: Play, call: str) -> Reply:
    async with serve_raw(play) as server:
        return await open_transport(server).send(Request(QUESTION, endpoint=call))  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["chat", "completions"])
@pytest.mark.parametrize(
    ("usage", "is_untrue"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, False),
        ({"prompt_tokens": 0, "completion_tokens": 0}, False),
        (None, False),
        ("much", False),
        ({"prompt_tokens": -3, "completion_tokens": 2}, True),
        ({"prompt_tokens": 3, "completion_tokens": "two"}, True),
        ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1e40}}, True),
    ],
)
async def test_usage_that_cannot_be_true_is_marked(usage: object, is_untrue: bool, call: str) -> None:
    reply = await send(answer({"choices": [CHOICE], "usage": usage}), call)
    assert (reply.choices[0].text, reply.has_untrue_usage) == ("hello", is_untrue)


async def test_usage_that_cannot_be_true_is_told_once() -> None:
    async with serve_raw(answer({"choices": [CHOICE], "usage": {"prompt_tokens": -1}})) as server:
        desk = await open_desk(server.base_url)
        for text in ("a", "b"):
            for role in (desk.models.base, desk.models.critic):
                await role.respond([{"role": "user", "content": text}])
    told = [event.message for event in desk.events if isinstance(event, Warned)]
    assert len(told) == 1
    assert f"{server.base_url} reports numbers of tokens for 'openai:m' that cannot be true" in told[0]


# Chat models of others


class OddModel(BaseChatModel):
    """Gives what it is set to, or raises it."""

    message: Any = None
    error: Any = None
    has_choices: bool = True

    @property
    def _llm_type(self) -> str:
        return "odd"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        if self.error is not None:
            raise self.error()
        message = self.message or AIMessage("hello")
        return ChatResult(generations=[ChatGeneration(message=message)] if self.has_choices else [])


def message_with(**fields: Any) -> AIMessage:
    """Return a message as a client may have made it, past all checks."""
    return AIMessage("hello").model_copy(update=fields)


def undecodable() -> Exception:
    return json.JSONDecodeError("no", "<html>", 0)


def undecoded() -> Exception:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")


def invalid() -> Exception:
    try:
        Usage.model_validate({"calls": "x"})
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -1, "output_tokens": 3},
        {"input_tokens": "x", "output_tokens": None},
        {"input_tokens": 3, "output_tokens": 2, "input_token_details": {"cache_read": float("nan")}},
    ],
)
async def test_usage_of_any_chat_model_that_cannot_be_true_is_left_out(usage: Any) -> None:
    reply = await LangChainTransport(OddModel(message=message_with(usage_metadata=usage))).send(Request(QUESTION))
    assert (reply.choices[0].text, reply.usage, reply.has_untrue_usage) == ("hello", Usage(calls=1), True)


@pytest.mark.parametrize("details", [None, "x", []])
async def test_usage_without_details_is_used(details: Any) -> None:
    usage = {"input_tokens": 3, "output_tokens": 2, "input_token_details": details, "output_token_details": details}
    reply = await LangChainTransport(OddModel(message=message_with(usage_metadata=usage))).send(Request(QUESTION))
    assert reply.usage == Usage(calls=1, prompt_tokens=3, completion_tokens=2)


@pytest.mark.parametrize(
    "model",
    [
        {"message": message_with(tool_calls=[{"name": "score"}])},
        {"message": message_with(invalid_tool_calls=[{}])},
        {"error": undecodable},
        {"error": undecoded},
        {"error": invalid},
    ],
)
async def test_what_a_chat_model_cannot_read_is_no_reply(model: dict[str, Any]) -> None:
    with pytest.raises(MalformedReplyError):
        await LangChainTransport(OddModel(**model)).send(Request(QUESTION))


async def test_what_a_chat_model_cannot_read_is_no_reply_in_a_stream_either() -> None:
    with pytest.raises(MalformedReplyError):
        [piece async for piece in LangChainTransport(OddModel(error=undecodable)).stream(Request(QUESTION))]


async def test_bug_of_a_chat_model_stays_one() -> None:
    with pytest.raises(KeyError):
        await LangChainTransport(OddModel(error=lambda: KeyError("score"))).send(Request(QUESTION))
