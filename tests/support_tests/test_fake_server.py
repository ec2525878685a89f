"""The fake server speaks OpenAI's protocol, and its faults follow content, not timing."""

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.support.fake_server import (
    FAULT_KINDS,
    REFUSAL,
    FakeServer,
    FaultKind,
    FaultPlan,
    Latency,
    Reply,
    Responder,
    ServerOptions,
    build_echo_responder,
    read_log,
    request_key,
    spawn_fake_server,
)

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
BODY: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
TOOL: ChatCompletionToolParam = {"type": "function", "function": {"name": "score", "parameters": {"type": "object"}}}


def always(reply: Reply) -> Responder:
    return lambda body: reply


@asynccontextmanager
async def client_of(responder: Responder, options: ServerOptions | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        FakeServer(responder, options) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-right", max_retries=0) as client,
    ):
        yield client


async def post(server: FakeServer, body: Mapping[str, object], path: str = "/chat/completions") -> tuple[int, str]:
    """Return status and text; status 0 for a broken connection."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(server.base_url + path, json=body) as response:
                return response.status, await response.text()
        except aiohttp.ClientConnectionError:
            return 0, ""


def content_of(text: str) -> str | None:
    content = json.loads(text)["choices"][0]["message"]["content"]
    assert content is None or isinstance(content, str)
    return content


def faulty(kind: FaultKind, *, max_per_request: int = 1) -> ServerOptions:
    return ServerOptions(faults=FaultPlan(1.0, [kind], max_per_request=max_per_request, retry_after_s=0.5))


async def test_openai_client_reads_a_chat_completion() -> None:
    async with client_of(always(Reply(["one two three"]))) as client:
        completion = await client.chat.completions.create(model="m", messages=HELLO)
    assert completion.choices[0].message.content == "one two three"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "m"
    usage = completion.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 3, 5)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


async def test_n_gives_n_choices_and_short_replies_repeat() -> None:
    async with client_of(always(Reply(["a", "b"], finish_reasons=["stop", "length"]))) as client:
        three = await client.chat.completions.create(model="m", messages=HELLO, n=3)
        one = await client.chat.completions.create(model="m", messages=HELLO)
    assert [choice.message.content for choice in three.choices] == ["a", "b", "a"]
    assert [choice.finish_reason for choice in three.choices] == ["stop", "length", "stop"]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(one.choices) == 1


async def test_limited_server_ignores_n() -> None:
    async with client_of(always(Reply(["a", "b"])), ServerOptions(ignore_n=True)) as client:
        completion = await client.chat.completions.create(model="m", messages=HELLO, n=2)
    assert len(completion.choices) == 1


async def test_text_completion_orders_choices_by_prompt() -> None:
    async with client_of(build_echo_responder("")) as client:
        completion = await client.completions.create(model="m", prompt=["x", "y"], n=2)
        single = await client.completions.create(model="m", prompt="z")
    assert [choice.text for choice in completion.choices] == ["x #0", "x #1", "y #0", "y #1"]
    assert single.choices[0].text == "z #0"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 2


@pytest.mark.parametrize(("tool_choice", "finish_reason"), [(True, "stop"), (False, "tool_calls")])
async def test_tool_arguments_become_a_call_of_the_named_function(tool_choice: bool, finish_reason: str) -> None:
    reply = Reply(["as text"], tool_arguments=['{"Clarity": 4}'])
    async with client_of(always(reply)) as client:
        completion = await client.chat.completions.create(
            model="m",
            messages=HELLO,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "score"}} if tool_choice else "auto",
        )
        without_tools = await client.chat.completions.create(model="m", messages=HELLO)
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert (calls[0].function.name, calls[0].function.arguments) == ("score", '{"Clarity": 4}')
    assert completion.choices[0].finish_reason == finish_reason
    assert without_tools.choices[0].message.tool_calls is None
    assert without_tools.choices[0].message.content == "as text"


async def test_refusal_stands_beside_the_content() -> None:
    async with client_of(always(Reply(refusals=["No."]))) as client:
        completion = await client.chat.completions.create(model="m", messages=HELLO)
    assert completion.choices[0].message.refusal == "No."
    assert completion.choices[0].message.content is None


async def test_responder_can_answer_with_an_error() -> None:
    reply = Reply(status=429, error_message="slow down", headers={"Retry-After": "7"})
    async with client_of(always(reply)) as client:
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.response.headers["Retry-After"] == "7"


async def test_only_the_right_key_is_authorized() -> None:
    async with client_of(always(Reply(["x"])), ServerOptions(api_key="sk-other")) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    async with client_of(always(Reply(["x"])), ServerOptions(api_key="sk-right")) as client:
        await client.chat.completions.create(model="m", messages=HELLO)


async def test_unknown_model_is_not_found() -> None:
    async with client_of(always(Reply(["x"])), ServerOptions(models=["a", "b"])) as client:
        assert [model.id async for model in client.models.list()] == ["a", "b"]
        await client.chat.completions.create(model="a", messages=HELLO)
        with pytest.raises(openai.NotFoundError, match="`m` does not exist") as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.code == "model_not_found"


async def test_limited_servers_refuse_what_they_lack() -> None:
    limits = ServerOptions(reject_response_format=True, reject_tools=True, reject_system_role=True)
    async with client_of(always(Reply(["x"])), limits) as client:
        with pytest.raises(openai.BadRequestError, match="response_format"):
            await client.chat.completions.create(model="m", messages=HELLO, response_format={"type": "json_object"})
        with pytest.raises(openai.BadRequestError, match="tools"):
            await client.chat.completions.create(model="m", messages=HELLO, tools=[TOOL])
        with pytest.raises(openai.BadRequestError, match="System role not supported"):
            await client.chat.completions.create(model="m", messages=[{"role": "system", "content": "x"}, *HELLO])
        await client.chat.completions.create(model="m", messages=HELLO)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HELLO},
        {"model": "m"},
        {"model": "m", "messages": []},
        {"model": "m", "messages": HELLO, "n": 0},
    ],
)
async def test_malformed_request_is_a_bad_request(body: dict[str, object]) -> None:
    async with FakeServer(always(Reply(["x"]))) as server:
        status, text = await post(server, body)
        assert status == 400
        assert json.loads(text)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("kind", "status"), [("429", 429), ("429_retry_after", 429), ("500", 500), ("503", 503)])
async def test_http_faults_have_their_status_then_the_request_succeeds(kind: FaultKind, status: int) -> None:
    async with FakeServer(always(Reply(["x"])), faulty(kind, max_per_request=2)) as server:
        statuses = [(await post(server, BODY))[0] for _ in range(4)]
    assert statuses == [status, status, 200, 200]
    assert [entry["fault"] for entry in server.finished] == [kind, kind, None, None]


async def test_only_one_of_the_429_faults_says_when_to_retry() -> None:
    for kind, expected in (("429", None), ("429_retry_after", "0.5")):
        async with client_of(always(Reply(["x"])), faulty(kind)) as client:  # type: ignore[arg-type]
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="m", messages=HELLO)
        assert caught.value.response.headers.get("Retry-After") == expected


async def test_reset_breaks_the_connection_once() -> None:
    async with client_of(always(Reply(["x"])), faulty("reset")) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="m", messages=HELLO)
        await client.chat.completions.create(model="m", messages=HELLO)


async def test_reset_is_logged_with_status_zero() -> None:
    async with FakeServer(always(Reply(["x"])), faulty("reset")) as server:
        assert (await post(server, BODY))[0] == 0
        assert [entry["status"] for entry in server.finished] == [0]


async def test_hang_lasts_until_the_client_gives_up() -> None:
    async with FakeServer(always(Reply(["x"])), faulty("hang")) as server:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.1)) as session:
            with pytest.raises(TimeoutError):
                await session.post(f"{server.base_url}/chat/completions", json=BODY)
        assert (await post(server, BODY))[0] == 200
        assert [(entry["fault"], entry["status"]) for entry in server.finished] == [("hang", 499), (None, 200)]


async def test_hanging_requests_do_not_keep_the_server_from_closing() -> None:
    started = time.monotonic()
    async with FakeServer(always(Reply(["x"])), faulty("hang")) as server:
        pending = asyncio.create_task(post(server, BODY))
        while not server.log:
            await asyncio.sleep(0)
    await pending
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("kind", "content", "finish_reason"),
    [
        ("empty", "", "stop"),
        ("truncated", '{"Clar', "length"),
        (
            "prose",
            'Sure! Here is what you asked for:\n\n{"Clarity":4}\n\nLet me know if you need anything else.',
            "stop",
        ),
        ("fenced", '```json\n{"Clarity":4}\n```', "stop"),
        ("refusal", None, "stop"),
    ],
)
async def test_bad_texts_come_with_status_200(kind: FaultKind, content: str | None, finish_reason: str) -> None:
    async with client_of(always(Reply(['{"Clarity":4}'])), faulty(kind)) as client:
        bad = await client.chat.completions.create(model="m", messages=HELLO)
        good = await client.chat.completions.create(model="m", messages=HELLO)
    assert bad.choices[0].message.content == content
    assert bad.choices[0].finish_reason == finish_reason
    assert bad.choices[0].message.refusal == (REFUSAL if kind == "refusal" else None)
    assert good.choices[0].message.content == '{"Clarity":4}'


async def test_bad_texts_replace_a_tool_call_and_truncation_cuts_its_arguments() -> None:
    reply = Reply(tool_arguments=['{"Clarity":4}'])
    body = {**BODY, "tools": [TOOL]}
    for kind, calls in (("prose", None), ("fenced", None), ("empty", None), ("truncated", '{"Clar')):
        async with FakeServer(always(reply), faulty(kind)) as server:  # type: ignore[arg-type]
            message = json.loads((await post(server, body))[1])["choices"][0]["message"]
            assert (message["tool_calls"][0]["function"]["arguments"] if "tool_calls" in message else None) == calls


def test_faults_are_a_function_of_content_and_arrival() -> None:
    plan = FaultPlan(0.4, seed=7, max_per_request=2)
    keys = [request_key({"i": index}) for index in range(500)]
    drawn = {(key, arrival): plan.fault_for(key, arrival) for key in keys for arrival in range(8)}
    assert drawn == {place: plan.fault_for(*place) for place in reversed(drawn)}
    num_faults = [sum(drawn[key, arrival] is not None for arrival in range(8)) for key in keys]
    assert max(num_faults) == 2
    assert 0.33 < sum(drawn[key, 0] is not None for key in keys) / 500 < 0.47
    assert set(drawn.values()) == {None, *FAULT_KINDS}
    assert drawn != {place: FaultPlan(0.4, seed=8).fault_for(*place) for place in drawn}


def test_rate_bounds_mean_never_and_always() -> None:
    assert all(FaultPlan(0.0).fault_for(str(index), 0) is None for index in range(100))
    assert all(FaultPlan(1.0).fault_for(str(index), 0) is not None for index in range(100))


async def test_faults_do_not_depend_on_interleaving() -> None:
    bodies = [{**BODY, "seed": index} for index in range(30)]
    options = ServerOptions(faults=FaultPlan(0.5, ["429", "500", "503", "empty"], seed=1))

    async def results_of(server: FakeServer, body: dict[str, object]) -> list[tuple[int, str]]:
        return [await post(server, body) for _ in range(4)]

    async with FakeServer(build_echo_responder(), options) as server:
        one_by_one = [await results_of(server, body) for body in bodies]
    async with FakeServer(build_echo_responder(), options) as server:
        mixed = await asyncio.gather(*[results_of(server, body) for body in reversed(bodies)])
    assert one_by_one == mixed[::-1]
    assert {status for results in one_by_one for status, _ in results} == {200, 429, 500, 503}


async def test_refused_requests_use_up_no_fault() -> None:
    options = ServerOptions(models=["m"], faults=FaultPlan(1.0, ["500"], max_per_request=1))
    async with FakeServer(always(Reply(["x"])), options) as server:
        assert [(await post(server, {**BODY, "model": "z"}))[0] for _ in range(2)] == [404, 404]
        assert [(await post(server, BODY))[0] for _ in range(2)] == [500, 200]


def test_latency_is_fixed_or_drawn_by_content() -> None:
    assert Latency(0.3).seconds_for("a") == Latency(0.3).seconds_for("b") == 0.3
    drawn = [Latency(0.2, sigma=0.5, seed=3).seconds_for(str(index)) for index in range(500)]
    assert drawn == [Latency(0.2, sigma=0.5, seed=3).seconds_for(str(index)) for index in range(500)]
    assert 0.18 < statistics.median(drawn) < 0.22
    assert max(drawn) > 0.5


async def test_replies_take_their_latency_side_by_side() -> None:
    async with FakeServer(always(Reply(["x"])), ServerOptions(latency=Latency(0.1))) as server:
        await asyncio.gather(*[post(server, {**BODY, "seed": index}) for index in range(10)])
    durations = [entry["t_end"] - entry["t_start"] for entry in server.finished]
    assert min(durations) >= 0.09
    assert server.max_in_flight > 1


async def test_log_tells_start_and_end_of_every_request(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    options = ServerOptions(log_path=str(path), log_bodies=True, faults=FaultPlan(1.0, ["500"], max_per_request=1))
    async with FakeServer(always(Reply(["x"])), options) as server:
        await post(server, BODY)
        await post(server, {"model": "m", "prompt": "p"}, "/completions")
        assert read_log(path) == server.log
    places = [(entry["event"], entry["seq"]) for entry in server.log]
    assert places == [("start", 0), ("end", 0), ("start", 1), ("end", 1)]
    first = server.finished[0]
    assert first["key"] == request_key(BODY)
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["status"], first["fault"], first["in_flight"]) == ("m", 500, "500", 1)
    assert first["body"] == BODY
    assert first["t_start"] <= first["t_end"]


def test_cut_last_log_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start"}\n{"event": "e')
    assert [entry["event"] for entry in read_log(path)] == ["start"]


def test_request_key_ignores_the_order_of_fields() -> None:
    assert request_key({"a": 1, "b": [2]}) == request_key({"b": [2], "a": 1})
    assert request_key({"a": 1}) != request_key({"a": 2})


def test_options_survive_the_command_line() -> None:
    options = ServerOptions(models=["a"], latency=Latency(0.1, sigma=0.2), faults=FaultPlan(0.5, ["500"]))
    assert ServerOptions.from_json(json.dumps(asdict(options))) == options
    assert ServerOptions.from_json("{}") == ServerOptions()


async def test_spawned_server_answers_as_configured_and_ends_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    options = ServerOptions(models=["m"], log_path=str(path), faults=FaultPlan(1.0, ["503"], max_per_request=1))
    echo = "tests.support.fake_server:build_echo_responder"
    with spawn_fake_server(echo, config={"prefix": "you said "}, options=options) as server:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=HELLO)
            completion = await client.chat.completions.create(model="m", messages=HELLO)
        assert server.pid != os.getpid()
    assert completion.choices[0].message.content == "you said hello there #0"
    assert [entry["status"] for entry in read_log(path) if entry["event"] == "end"] == [503, 200]
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


async def test_log_of_a_killed_server_holds_what_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    options = ServerOptions(log_path=str(path))
    with spawn_fake_server("tests.support.fake_server:build_echo_responder", options=options) as server:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x") as client:
            await client.chat.completions.create(model="m", messages=HELLO)
        os.kill(server.pid, signal.SIGKILL)
    assert [entry["event"] for entry in read_log(path)] == ["start", "end"]


def test_server_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(RuntimeError, match="no_such_factory"),
        spawn_fake_server("tests.support.fake_server:no_such_factory"),
    ):
        pytest.fail("the block must not run")


async def test_streamed_answer_joins_to_the_whole_one() -> None:
    async with client_of(always(Reply(["Rain is water."]))) as client:
        chat = await client.chat.completions.create(
            model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        parts = [part async for part in chat]
        pieces = [part.choices[0].delta.content or "" for part in parts if part.choices]
        assert ("".join(pieces), len(pieces) > 3) == ("Rain is water.", True)
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens == 3
        flat = await client.completions.create(model="m", prompt="x", stream=True)
        assert "".join([part.choices[0].text async for part in flat if part.choices]) == "Rain is water."
