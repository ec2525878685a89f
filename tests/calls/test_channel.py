"""The one retry loop: what is asked again and how long it waits, what ends a call, and what ends the run."""

import asyncio
import gc
import logging
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import openai
import pytest
from aiohttp import web
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from drpo_graph.calls.ladder import Sample
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ModelCallError, RunInterruptedError
from drpo_graph.models.clients import build_clients
from drpo_graph.models.request import Request
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import FakeServer, FaultKind, FaultPlan, ServerOptions, build_echo_responder
from tests.support.roles import Desk, answer, by_content, failing, open_desk, parse_answer, script, serve

KEY = "canary-8c1f0a77b2d94e"
ANSWER = by_content({}, answer(4))


async def ask(model: RoleModel, text: str = "How good is it?") -> Sample[int]:
    (sample,) = await model.ask([{"role": "user", "content": text}], parse=parse_answer)
    return sample


async def is_open(desk: Desk) -> bool:
    """Return whether another call could begin at once."""
    try:
        async with asyncio.timeout(0.1), desk.models.critic.channel.client.replicas[0].gate().slot():
            return True
    except TimeoutError:
        return False


# What is asked again


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
async def test_passing_failure_is_retried_by_us_alone(status: int) -> None:
    says = script(failing(status), failing(status), answer(4))
    async with serve(says) as (server, desk):
        assert (await ask(desk.models.critic)).value == 4
        assert len(server.finished) == 3
    assert [(retry.kind, retry.attempt, retry.wait_s) for retry in desk.retries] == [
        (f"http_{status}", 1, 0.001),
        (f"http_{status}", 2, 0.001),
    ]
    assert desk.ledger.retries_by_kind == {f"http_{status}": 2}
    assert [call.from_ledger for call in desk.calls] == [False]


@pytest.mark.parametrize(("fault", "kind"), [("reset", "connection"), ("hang", "timeout")])
async def test_reset_and_timeout_are_retried(fault: FaultKind, kind: str) -> None:
    faults = FaultPlan(1.0, kinds=(fault,), max_per_request=1)
    async with serve(ANSWER, ServerOptions(faults=faults), timeout_s=0.5) as (server, desk):
        assert (await ask(desk.models.critic)).value == 4
        assert len(server.finished) == 2
    assert [retry.kind for retry in desk.retries] == [kind]
    assert 0.25 <= desk.retries[0].wait_s <= 0.5


async def test_timeout_halves_the_calls_in_flight_but_holds_no_others_back() -> None:
    faults = FaultPlan(1.0, kinds=("hang",))
    async with serve(ANSWER, ServerOptions(faults=faults), timeout_s=0.2) as (_, desk):
        desk.stop_at_retry()
        with pytest.raises(RunInterruptedError):
            await ask(desk.models.critic)
        assert desk.models.critic.channel.client.replicas[0].gate().limit == 16
        assert await is_open(desk)


async def test_waits_double_between_tries() -> None:
    async with serve(script(*[failing(500, headers={})] * 2)) as (_, desk):
        desk.stop_at_retry(2)
        with pytest.raises(RunInterruptedError):
            await ask(desk.models.critic)
    first, second = (retry.wait_s for retry in desk.retries)
    assert 0.25 <= first <= 0.5 <= second <= 1.0


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "2.5"}, 2.5, 2.5),
        ({"Retry-After": formatdate(time.time() + 1800, usegmt=True)}, 900, 1800),
        # "At once" says nothing of how long it will be overloaded.
        ({"Retry-After": "0"}, 0.25, 0.5),
        ({"Retry-After": formatdate(0, usegmt=True)}, 0.25, 0.5),
        ({"Retry-After": "-3"}, 0.25, 0.5),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5, 1.5),
        ({"Retry-After": "86400"}, 3600, 3600),
        ({"Retry-After": "soon"}, 0.25, 0.5),
        ({"Retry-After": "nan"}, 0.25, 0.5),
        ({"Retry-After": "inf"}, 0.25, 0.5),
    ],
)
async def test_server_says_how_long_to_wait(headers: Mapping[str, str], least: float, most: float) -> None:
    async with serve(script(failing(429, headers=headers)), max_outage_s=7200) as (_, desk):
        desk.stop_at_retry()
        with pytest.raises(RunInterruptedError, match="seen enough"):
            await ask(desk.models.critic)
    assert least <= desk.retries[0].wait_s <= most


async def test_overload_halves_the_calls_in_flight_and_pauses_all() -> None:
    async with serve(script(failing(429, headers={"Retry-After": "30"}))) as (_, desk):
        desk.stop_at_retry()
        with pytest.raises(RunInterruptedError):
            await ask(desk.models.critic)
        assert desk.models.critic.channel.client.replicas[0].gate().limit == 16
        assert not await is_open(desk)


@asynccontextmanager
async def raw_server(*answers: web.Response) -> AsyncIterator[str]:
    """Serve these answers in order, whatever is asked."""
    left = list(answers)

    async def handle(_: web.Request) -> web.Response:
        return left.pop(0)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


MESSAGE = {"role": "assistant", "content": '{"score": 4}'}
GOOD: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
GOOD["choices"] = [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]


@pytest.mark.parametrize(
    "bad",
    [
        web.Response(text="<html>Bad gateway</html>", content_type="text/html"),
        web.Response(text='{"id": ', content_type="application/json"),
        web.json_response({"error": {"message": "upstream is down", "code": "upstream"}}),
        web.json_response({**GOOD, "choices": None}),
        web.json_response({**GOOD, "choices": [{"index": 0}]}),
        web.json_response([]),
    ],
    ids=["page", "cut", "error", "null", "no-message", "list"],
)
async def test_answer_that_is_no_reply_is_retried(bad: web.Response) -> None:
    async with raw_server(bad, web.json_response(GOOD)) as base_url:
        desk = await open_desk(base_url)
        assert (await ask(desk.models.critic)).value == 4
    assert [retry.kind for retry in desk.retries] == ["malformed"]


async def test_reply_without_usage_counts_as_a_call() -> None:
    odd = {**GOOD, "usage": {"prompt_tokens": None, "completion_tokens": 3}}
    async with raw_server(web.json_response(GOOD), web.json_response(odd)) as base_url:
        desk = await open_desk(base_url)
        await ask(desk.models.critic)
        await ask(desk.models.base)
    usage = desk.ledger.usage_by_role
    assert (usage["critic"].calls, usage["critic"].prompt_tokens) == (1, 0)
    assert (usage["base"].prompt_tokens, usage["base"].completion_tokens) == (0, 3)


# What ends the run


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "settings"), (401, "API key"), (403, "API key"), (404, "name and the base URL"), (422, "settings")],
)
async def test_refused_endpoint_stops_the_run_after_one_request(status: int, advice: str) -> None:
    says = script(failing(status, "Something\nis wrong"))
    async with serve(says) as (server, desk):
        with pytest.raises(ModelCallError) as caught:
            await ask(desk.models.critic)
        message = str(caught.value)
        assert len(says.bodies) == 1
        assert server.base_url in message
    assert caught.value.kind == f"http_{status}"
    assert caught.value.role == "critic"
    assert caught.value.is_resumable
    assert "critic model 'openai:m'" in message
    assert "Something is wrong. Check" in message
    assert advice in message
    assert "\n" not in message
    assert not desk.retries


@pytest.mark.parametrize(
    "options", [ServerOptions(api_key="other"), ServerOptions(models=["other"])], ids=["key", "model"]
)
async def test_wrong_key_and_unknown_model_are_told_apart(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with serve(ANSWER, options) as (server, desk):
        with pytest.raises(ModelCallError) as caught:
            await ask(desk.models.metrics)
        assert len(server.finished) == 1
    expected = "http_401" if options.api_key else "http_404"
    assert caught.value.kind == expected
    assert KEY not in str(caught.value)


async def test_spent_quota_is_not_waited_for() -> None:
    says = script(failing(429, "You exceeded your current quota, please check your plan and billing details."))
    async with serve(says) as (_, desk):
        with pytest.raises(ModelCallError, match="top it up") as caught:
            await ask(desk.models.critic)
    assert caught.value.kind == "quota"
    assert len(says.bodies) == 1


async def test_server_that_was_never_reached_is_given_up_after_three_tries(unused_tcp_port: int) -> None:
    desk = await open_desk(f"http://127.0.0.1:{unused_tcp_port}/v1")
    with pytest.raises(ModelCallError, match="cannot be reached after 3 tries") as caught:
        await ask(desk.models.base)
    assert caught.value.kind == "unreachable"
    assert f":{unused_tcp_port}/v1" in str(caught.value)
    assert len(desk.retries) == 2


async def test_server_that_is_gone_in_mid_run_settles_no_call() -> None:
    async with FakeServer(by_content({}, answer(4))) as server:
        desk = await open_desk(server.base_url, max_retries=1, max_outage_s=0)
        assert (await ask(desk.models.critic, "one")).value == 4
    for text in ("two", "three"):
        with pytest.raises(ModelCallError, match="cannot be reached after 2 tries") as caught:
            await ask(desk.models.critic, text)
        assert caught.value.kind == "unreachable"
        assert caught.value.is_resumable


async def test_two_calls_in_a_row_that_fail_for_good_stop_the_run() -> None:
    async with serve(by_content({}, failing(500)), max_retries=1) as (server, desk):
        first = await ask(desk.models.critic, "one")
        assert first.failure is not None
        assert first.failure.kind == "unavailable"
        with pytest.raises(ModelCallError, match=r"gave no reply \(http_500\) after 2 tries"):
            await ask(desk.models.critic, "two")
        assert len(server.finished) == 4


# What ends one call only


async def test_poison_request_becomes_an_unscored_sample_while_others_go_on() -> None:
    says = by_content({"poison": failing(500, "boom")}, answer(4))
    async with serve(says, ServerOptions(log_bodies=True), max_retries=2) as (server, desk):
        texts = ["one", "poison", "two", "more poison", "three"]
        samples = [await ask(desk.models.critic, text) for text in texts]
        sent = [entry["body"]["messages"][-1]["content"] for entry in server.finished]
    assert [sample.value for sample in samples] == [4, None, 4, None, 4]
    for failed in (samples[1], samples[3]):
        assert failed.failure is not None
        assert failed.failure.kind == "unavailable"
        assert "http_500: boom" in failed.failure.detail
        noted = await desk.session.archive.get_all("failures")
    assert [kinds for key, kinds in noted.items() if key.startswith("call/")] == [{"http_500": 3}, {"http_500": 3}]
    assert not any(key.startswith("reply/") for key in noted)
    # The same request again could only fail again.
    assert sent == ["one", *["poison"] * 3, "two", *["more poison"] * 3, "three"]


async def test_request_that_is_too_long_is_rejected_alone() -> None:
    long = failing(400, "This model's maximum context length is 512 tokens.")
    async with serve(by_content({"long": long}, answer(4))) as (server, desk):
        # Even as the first request of a run: another one may be shorter.
        sample = await ask(desk.models.critic, "long")
        assert (await ask(desk.models.critic, "short")).value == 4
        assert len(server.finished) == 2
    assert sample.failure is not None
    assert sample.failure.kind == "overflow"


async def test_bad_request_is_this_request_s_fault_once_others_were_answered() -> None:
    async with serve(by_content({"odd": failing(400, "I do not like this")}, answer(4))) as (_, desk):
        assert (await ask(desk.models.critic, "plain")).value == 4
        sample = await ask(desk.models.critic, "odd")
    assert sample.failure is not None
    assert sample.failure.kind == "rejected"
    assert sample.failure.detail == "http_400: I do not like this"


# Stopping


async def test_stop_wakes_calls_that_wait_for_a_retry_or_a_pause() -> None:
    async with serve(by_content({}, failing(429, headers={"Retry-After": "600"}))) as (server, desk):
        calls = [asyncio.create_task(ask(desk.models.critic, f"{number}")) for number in range(40)]
        while len(desk.retries) < 16:
            await asyncio.sleep(0.01)
        desk.context.stop.request("enough")
        await asyncio.wait_for(desk.ledger.drain(), 5)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert len(server.finished) < 40
    assert {type(result) for result in results} == {RunInterruptedError}


async def test_stop_wakes_calls_that_wait_for_the_rate() -> None:
    async with serve(ANSWER, requests_per_second=0.01) as (server, desk):
        calls = [asyncio.create_task(ask(desk.models.critic, f"{number}")) for number in range(5)]
        while not desk.calls:
            await asyncio.sleep(0.01)
        desk.context.stop.request("enough")
        await asyncio.wait_for(desk.ledger.drain(), 5)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert len(server.finished) == 1
    assert sum(isinstance(result, RunInterruptedError) for result in results) == 4


# Keys


@pytest.mark.parametrize("status", [400, 401, 404, 418, 500])
async def test_key_is_in_no_message_record_event_or_log(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    says = script(answer(4), *[failing(status, f"Incorrect API key provided: Bearer {KEY}")] * 2)
    seen: list[str] = []
    async with serve(says, max_retries=1) as (_, desk):
        seen.append(repr(await ask(desk.models.critic, "one")))
        try:
            seen.append(repr(await ask(desk.models.critic, "two")))
        except ModelCallError as error:
            logging.getLogger("drpo_graph").exception("stopped")
            seen.append(str(error))
        seen += [event.model_dump_json() for event in desk.events]
        seen += [repr(item) for item in await desk.store.asearch(("drpo",), limit=100)]
        seen += [repr(desk.context), repr(desk.models)]
    seen.append(caplog.text)
    assert not [text for text in seen if KEY in text]


# Clients


async def test_given_chat_model_retries_nothing_on_its_own() -> None:
    says = script(failing(500), answer(1, 2, 3))
    async with FakeServer(says) as server:
        given = ChatOpenAI(model="mine", base_url=server.base_url, api_key=SecretStr(KEY), max_retries=5)
        desk = await open_desk("http://unused.test/v1", models={"optimizer": given})
        client = desk.models.optimizer.channel.client
        samples = await desk.models.optimizer.ask([{"role": "user", "content": "?"}], parse=parse_answer, num_samples=3)
        assert len(server.finished) == 2
        assert (client.replicas[0].endpoint, client.replicas[0].secret) == (server.base_url, KEY)
    assert [sample.value for sample in samples] == [1, 2, 3]
    assert [retry.kind for retry in desk.retries] == ["http_500"]
    assert given.max_retries == 5


def has_no_aiohttp(**_: object) -> None:
    raise RuntimeError("To use the aiohttp client you must have installed the package with the `aiohttp` extra")


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_clients_outlive_their_event_loop_and_leave_nothing_open(
    transport: str, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if transport == "httpx":
        monkeypatch.setattr(openai, "DefaultAioHttpClient", has_no_aiohttp)
    chat = {"model": "openai:m", "base_url": f"http://127.0.0.1:{unused_tcp_port}/v1"}
    flat = {**chat, "endpoint": "completions"}
    clients = build_clients(build_settings({"base": flat, "metrics": chat, "critic": chat, "optimizer": chat}))
    request = Request([{"role": "user", "content": "Hi"}], num_samples=2)

    async def ask_all() -> list[str]:
        async with FakeServer(build_echo_responder(), ServerOptions(port=unused_tcp_port)):
            replies = await asyncio.gather(*(client.replicas[0].transport.send(request) for client in clients.values()))
        return [choice.text for reply in replies for choice in reply.choices]

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert asyncio.run(ask_all()) == ["echo: Hi #0", "echo: Hi #1"] * 4
        clients.clear()
        gc.collect()
    assert not [one for one in caught if issubclass(one.category, ResourceWarning)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
