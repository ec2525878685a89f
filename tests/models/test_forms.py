"""Harmless differences of form in servers' answers: read all the same, and told where something is missing."""

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from aiohttp import web

from drpo_graph.errors import ModelCallError, ReplyError
from drpo_graph.inference import AlignedModel
from drpo_graph.models.bodies import read_body
from drpo_graph.models.failures import MalformedReplyError
from drpo_graph.models.request import ReplySchema, Request
from drpo_graph.records import Usage
from drpo_graph.settings.layers import build_settings
from tests.support.command import KEY
from tests.support.fake_server import FakeServer, Reply
from tests.support.fake_streams import parts_of
from tests.support.roles import QUESTION, open_desk

ANSWER = '{"score": 4}'
SCHEMA = ReplySchema("score", {"type": "object"})
PAGE = "<html><body>Back in five minutes</body></html>"

Change = Callable[[dict[str, Any]], object]
Endpoint = Literal["chat", "completions"]


class OddServer(FakeServer):
    """Answers in a form of its own: ``answer`` makes it of the usual payload."""

    def __init__(self, answer: Callable[[dict[str, Any], bool], web.Response], text: str = ANSWER) -> None:
        super().__init__(lambda body: Reply([text], tool_arguments=[text]))
        self._form = answer
        self.num_asked = 0

    def _reply_to(self, request: Any, body: dict[str, object], **rest: Any) -> web.Response:
        self.num_asked += 1
        response = super()._reply_to(request, {**body, "stream": False}, **rest)
        assert isinstance(response.body, bytes)
        return self._form(json.loads(response.body), bool(body.get("stream")))


def changed(change: Change) -> Callable[[dict[str, Any], bool], web.Response]:
    """Return an answer whose messages are changed."""

    def answer(payload: dict[str, Any], _: bool) -> web.Response:
        for choice in payload["choices"]:
            change(choice["message"])
        return web.json_response(payload)

    return answer


def events(payload: dict[str, Any], *, is_cut: bool = False, is_done: bool = True) -> web.Response:
    """Return the payload as a stream, without its finish reason and what follows where it is cut."""
    parts = list(parts_of(payload))
    if is_cut:
        parts = [one for one in parts if one["choices"] and one["choices"][0]["finish_reason"] is None]  # type: ignore[index]
    lines = [f"data: {json.dumps(one)}\n\n" for one in parts]
    body = "".join([": a comment\n\n", *lines, "data: [DONE]\n\n" if is_done else ""])
    return web.Response(body=body.encode(), content_type="text/event-stream")


def as_objects(message: dict[str, Any]) -> None:
    for call in message.get("tool_calls") or ():
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])


def as_parts(message: dict[str, Any]) -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": '{"score": 1}'}]}
    message["content"] = [thought, {"type": "text", "text": message["content"]}]


MESSAGES: dict[str, Change] = {
    "no role": lambda message: message.pop("role"),
    "null role": lambda message: message.update(role=None),
    "another role": lambda message: message.update(role="model"),
    "arguments as an object": as_objects,
    "content as an object": lambda message: message.update(content=json.loads(message["content"])),
    "thinking apart": lambda message: message.update(reasoning_content='{"score": 1}'),
    "thinking in a part": as_parts,
}


@pytest.mark.parametrize("mode", ["text", "tool"])
@pytest.mark.parametrize("form", MESSAGES)
async def test_message_in_another_form_is_read(form: str, mode: str) -> None:
    async with OddServer(changed(MESSAGES[form])) as server:
        desk = await open_desk(server.base_url)
        request = Request(QUESTION, mode=mode, schema=SCHEMA)
        reply = await desk.models.base.channel.client.replicas[0].transport.send(request)
    assert json.loads(reply.choices[0].text) == {"score": 4}


async def test_thinking_that_a_server_tells_apart_is_no_answer() -> None:
    def think_only(message: dict[str, Any]) -> None:
        message.update(reasoning_content=ANSWER, content=None)

    async with OddServer(changed(think_only)) as server:
        desk = await open_desk(server.base_url)
        sample = await desk.models.base.respond(QUESTION)
    assert sample.failure is not None
    assert sample.failure.kind == "empty"


@pytest.mark.parametrize("mode", ["text", "tool"])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_stream_that_nobody_asked_for_is_read_as_a_whole(endpoint: Endpoint, mode: str) -> None:
    for answer in (lambda payload, _: events(payload), lambda payload, _: web.Response(text=json.dumps(payload))):
        async with OddServer(answer) as server:
            desk = await open_desk(server.base_url)
            transport = desk.models.base.channel.client.replicas[0].transport
            reply = await transport.send(Request(QUESTION, endpoint=endpoint))
        assert [(one.text, one.finish_reason) for one in reply.choices] == [(ANSWER, "stop")]
        assert reply.usage.completion_tokens == 2


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_stream_that_nobody_asked_for_is_no_reply_where_it_is_cut(endpoint: Endpoint) -> None:
    async with OddServer(lambda payload, _: events(payload, is_cut=True, is_done=False)) as server:
        desk = await open_desk(server.base_url)
        transport = desk.models.base.channel.client.replicas[0].transport
        with pytest.raises(MalformedReplyError, match="no finish reason"):
            await transport.send(Request(QUESTION, endpoint=endpoint))


def test_streamed_tool_call_is_joined() -> None:
    calls: list[Any] = ['{"sco', 're": 4}']
    parts: list[Any] = [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": one}}]}} for one in calls]
    parts.append({"delta": {}, "finish_reason": "tool_calls"})
    text = "".join(f"data: {json.dumps({'id': 'x', 'choices': [one]})}\n\n" for one in parts)
    (choice,) = read_body(text)["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ANSWER


def body_of(payload: dict[str, Any], change: bytes) -> bytes:
    return change or json.dumps(payload).encode().replace(b"score", b"\xff\xfe")


UNREADABLE = {
    "bytes that are no text": b"",
    "bytes that are no UTF-16": b"\xff\xfe\xfa",
    "arrays in arrays": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number without end": b'{"choices": [], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    "a word": b"NaN",
    "nothing": b'""',
}


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("kind", UNREADABLE)
async def test_answer_that_cannot_be_read_is_a_failed_try_and_no_bug(kind: str, endpoint: Endpoint) -> None:
    def answer(payload: dict[str, Any], _: bool) -> web.Response:
        return web.Response(body=body_of(payload, UNREADABLE[kind]), content_type="application/json")

    async with OddServer(answer) as server:
        desk = await open_desk(server.base_url, max_retries=1, retry_wait_s=0.001, max_outage_s=0)
        sample = await desk.models.base.respond(QUESTION)
    assert sample.failure is not None
    assert (sample.failure.kind, server.num_asked) == ("unavailable", 2)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("kind", ["bytes that are no UTF-16", "arrays in arrays", "a word"])
async def test_stream_that_cannot_be_read_is_a_failed_try_and_no_bug(kind: str, endpoint: Endpoint) -> None:
    def answer(_: dict[str, Any], is_stream: bool) -> web.Response:
        return web.Response(body=b"data: " + UNREADABLE[kind] + b"\n\n", content_type="text/event-stream")

    async with OddServer(answer) as server:
        with pytest.raises((ModelCallError, ReplyError)):
            await read_stream(server, endpoint)
    assert server.num_asked > 1


COUNTS: tuple[Any, ...] = (1e30, float("nan"), float("inf"), -1_000_000, 10**30, "", "12", [], {}, True)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("count", COUNTS, ids=repr)
async def test_usage_that_cannot_be_true_is_not_told_and_the_answer_is_used(count: Any, endpoint: Endpoint) -> None:
    details = [("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens")]
    reports = [{"prompt_tokens": 3, "completion_tokens": count}, {"prompt_tokens": count, "completion_tokens": 3}]
    for report in [
        *reports,
        *({"prompt_tokens": 3, "completion_tokens": 3, one: {two: count}} for one, two in details),
    ]:

        def answer(payload: dict[str, Any], _: bool, report: dict[str, Any] = report) -> web.Response:
            return web.json_response({**payload, "usage": report})

        async with OddServer(answer) as server:
            desk = await open_desk(server.base_url)
            transport = desk.models.base.channel.client.replicas[0].transport
            reply = await transport.send(Request(QUESTION, endpoint=endpoint))
        assert reply.choices[0].text == ANSWER
        assert reply.usage == Usage(calls=1)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("usage", [None, [], "much", 5, {}, {"prompt_tokens_details": "x"}, {"prompt_tokens": -0.0}])
async def test_usage_that_is_none_costs_no_answer(usage: Any, endpoint: Endpoint) -> None:
    async with OddServer(lambda payload, _: web.json_response({**payload, "usage": usage})) as server:
        desk = await open_desk(server.base_url)
        transport = desk.models.base.channel.client.replicas[0].transport
        reply = await transport.send(Request(QUESTION, endpoint=endpoint))
    assert (reply.choices[0].text, reply.usage) == (ANSWER, Usage(calls=1))


@pytest.mark.parametrize("text", ["", PAGE, "[]", "data: {\n\n", "data: 3\n\n", "data: [DONE]\n\n"])
def test_text_that_holds_no_reply_is_malformed(text: str) -> None:
    with pytest.raises(MalformedReplyError):
        read_body(text)


def test_error_in_a_stream_is_told_in_its_words() -> None:
    assert read_body('data: {"error": {"message": "busy"}}\n\n') == {"error": {"message": "busy"}}


# Streams that were asked for


def aligned(base_url: str, endpoint: Endpoint) -> AlignedModel:
    base: Any = {"endpoint": endpoint}
    values: dict[str, Any] = {"max_outage_s": 0, "probe": False, "retry_wait_s": 0.001, "max_retries": 2}
    settings = build_settings({"model": "openai:m", "base": base, **values})
    return AlignedModel(model="openai:m", system_prompt="Be brief.", base_url=base_url, settings=settings)


async def read_stream(server: FakeServer, endpoint: Endpoint) -> str:
    return "".join([str(one.text) async for one in aligned(server.base_url, endpoint).astream("What?")])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_stream_that_is_cut_is_never_passed_as_whole(endpoint: Endpoint) -> None:
    async with OddServer(lambda payload, _: events(payload, is_cut=True, is_done=False), text="A fine day.") as server:
        with pytest.raises(ModelCallError, match="broke off in the middle"):
            await read_stream(server, endpoint)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_page_in_place_of_a_stream_is_told_and_tried_again(endpoint: Endpoint) -> None:
    async with OddServer(lambda *_: web.Response(text=PAGE, content_type="text/html"), text="A fine day.") as server:
        with pytest.raises((ModelCallError, ReplyError), match="Back in five minutes"):
            await read_stream(server, endpoint)
    assert server.num_asked > 2


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_server_that_does_not_stream_is_read_all_the_same(endpoint: Endpoint) -> None:
    async with OddServer(lambda payload, _: web.json_response(payload), text="A fine day.") as server:
        assert await read_stream(server, endpoint) == "A fine day."


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(
    ("words", "is_answered"),
    [
        ("Streaming is not supported for this model.", True),
        ("This model does not support streaming", True),
        ("stream must not be true: unsupported", True),
        ("Unsupported parameter: 'stream'", True),
        ("The weather is bad.", False),
        ("The weather is not what it was downstream", False),
    ],
)
async def test_model_that_refuses_to_stream_is_asked_for_the_whole(
    words: str, is_answered: bool, endpoint: Endpoint
) -> None:
    def answer(payload: dict[str, Any], is_stream: bool) -> web.Response:
        return web.json_response(
            {"error": {"message": words}} if is_stream else payload, status=400 if is_stream else 200
        )

    async with OddServer(answer, text="A fine day.") as server:
        if is_answered:
            assert await read_stream(server, endpoint) == "A fine day."
        else:
            with pytest.raises((ModelCallError, ReplyError), match="weather"):
                await read_stream(server, endpoint)
