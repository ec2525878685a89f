"""A server that goes away in mid-run: calls wait without spending tries, one of them probes, and the run goes on."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from drpo_graph.errors import ModelCallError, RunInterruptedError
from drpo_graph.events import EndpointBack, EndpointLost
from drpo_graph.failures import CallFailure
from drpo_graph.outages import Circuit
from tests.support.fake_server import FakeServer, FaultPlan, Latency, ServerOptions
from tests.support.oracle import build_responder
from tests.support.roles import Desk, answer, by_content, failing, open_desk, parse_answer, serve

REFUSED = CallFailure("connection", "retry", "refused", is_unreached=True)
BROKEN = CallFailure("http_500", "retry", "boom")
GATEWAY = CallFailure("http_502", "retry", "bad gateway")


def port_of(server: FakeServer) -> int:
    return int(server.base_url.split(":")[2].split("/")[0])


def lost(desk: Desk) -> list[EndpointLost]:
    return [event for event in desk.events if isinstance(event, EndpointLost)]


def back(desk: Desk) -> list[EndpointBack]:
    return [event for event in desk.events if isinstance(event, EndpointBack)]


async def respond(desk: Desk, text: str) -> str | None:
    return (await desk.models.base.respond([{"role": "user", "content": text}])).value


async def until(desk: Desk, number: int) -> None:
    """Return when this many tries have failed."""
    while len(desk.retries) < number:
        await asyncio.sleep(0.005)


@asynccontextmanager
async def after_loss(
    num_calls: int, **values: object
) -> AsyncIterator[tuple[Desk, int, list[asyncio.Task[str | None]]]]:
    """Give a run that has had one reply, the port of its server, which has gone since, and calls made after that."""
    async with FakeServer(build_responder(seed=3)) as server:
        desk = await open_desk(server.base_url, **{"retry_wait_s": 0.02, **values})
        assert await respond(desk, "Early")
        port = port_of(server)
    calls = [asyncio.create_task(respond(desk, f"Question {index}")) for index in range(num_calls)]
    yield desk, port, calls
    for call in calls:
        call.cancel()


async def test_calls_wait_for_a_lost_server_and_spend_no_tries() -> None:
    async with after_loss(40, max_retries=1, max_concurrency=8) as (desk, port, calls):
        # Far more failures than one call may have: they are probes, one at a time.
        await until(desk, 8 + 3)
        async with FakeServer(build_responder(seed=3), ServerOptions(port=port)) as again:
            assert all(await asyncio.gather(*calls))
            assert len(again.finished) == 40
    assert [(event.endpoint, event.kind) for event in lost(desk)] == [(again_url(port), "connection")]
    assert len(back(desk)) == 1
    assert back(desk)[0].lost_s > 0
    assert desk.models.base.channel.client.replicas[0].gate().num_in_flight == 0


def again_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


async def test_only_one_call_at_a_time_tries_a_lost_server_and_ever_more_seldom() -> None:
    async with after_loss(30, max_concurrency=10) as (desk, _, _calls):
        await until(desk, 14)
        circuit = desk.models.base.channel.client.replicas[0].gate().circuit
        # The calls that were on their way when it went, then one after the other.
        assert len(desk.retries) <= 10 + 5
        await asyncio.sleep(0)
        assert circuit.is_open
        assert circuit.probe_at - time.monotonic() > 0.02


async def test_an_outage_that_lasts_too_long_stops_the_run_and_says_how_long_it_was() -> None:
    async with after_loss(5, max_outage_s=0.3) as (_, port, calls):
        results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [one for one in results if isinstance(one, ModelCallError)]
    assert len(errors) == 5
    assert str(errors[0]).startswith(f"The base model 'openai:m' at {again_url(port)} has been away for 0 s")
    assert "then resume" in str(errors[0])
    assert errors[0].is_resumable
    assert errors[0].kind == "unreachable"


async def test_without_waiting_a_lost_server_costs_the_call_its_tries() -> None:
    async with after_loss(2, max_outage_s=0, max_retries=2) as (desk, _, calls):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in results} <= {ModelCallError, type(None)}
    assert any(isinstance(one, ModelCallError) for one in results)
    assert len(desk.retries) == 4
    assert not lost(desk)


async def test_a_stop_ends_the_wait_at_once() -> None:
    async with after_loss(5, max_outage_s=600) as (desk, _, calls):
        await until(desk, 6)
        desk.context.stop.request("enough")
        await asyncio.wait_for(desk.ledger.drain(), 5)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in results} == {RunInterruptedError}


async def test_setting_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    true_time = time.time
    async with after_loss(5, max_outage_s=60) as (desk, port, calls):
        await until(desk, 6)
        monkeypatch.setattr(time, "time", lambda: true_time() + 86_400)
        await until(desk, 7)
        monkeypatch.setattr(time, "time", lambda: true_time() - 86_400)
        await until(desk, 8)
        async with FakeServer(build_responder(seed=3), ServerOptions(port=port)):
            assert all(await asyncio.wait_for(asyncio.gather(*calls), 10))
    assert 0 < back(desk)[0].lost_s < 60


async def test_a_gateway_without_its_server_is_an_outage_even_for_one_call() -> None:
    faults = FaultPlan(1.0, kinds=("503",), max_per_request=12)
    says = by_content({}, answer(4))
    async with serve(says, max_retries=5, retry_wait_s=0.01) as (server, desk):
        await desk.models.critic.ask([{"role": "user", "content": "one"}], parse=parse_answer)
        object.__setattr__(server.options, "faults", faults)
        (sample,) = await desk.models.critic.ask([{"role": "user", "content": "two"}], parse=parse_answer)
    assert sample.value == 4
    assert desk.ledger.retries_by_kind == {"http_503": 12}
    assert (len(lost(desk)), len(back(desk))) == (1, 1)


async def test_a_request_that_breaks_the_server_is_given_up_on_and_no_outage() -> None:
    says = by_content({"poison": failing(500, "boom")}, answer(4))
    async with serve(says, max_retries=8, retry_wait_s=0.001) as (server, desk):
        texts = ["one", "poison", "two"]
        asked = [desk.models.critic.ask([{"role": "user", "content": text}], parse=parse_answer) for text in texts]
        samples = [(await one)[0] for one in asked]
        assert len(server.finished) == 1 + 9 + 1
    assert [sample.value for sample in samples] == [4, None, 4]
    assert not lost(desk)


async def test_several_calls_that_fail_again_and_again_are_an_outage() -> None:
    says = by_content({}, answer(4))
    async with serve(says, max_retries=3, retry_wait_s=0.01) as (server, desk):
        await desk.models.critic.ask([{"role": "user", "content": "one"}], parse=parse_answer)
        object.__setattr__(server.options, "faults", FaultPlan(1.0, kinds=("500",), max_per_request=100))
        calls = [
            asyncio.create_task(desk.models.critic.ask([{"role": "user", "content": f"{n}"}], parse=parse_answer))
            for n in range(6)
        ]
        await until(desk, 12)
        object.__setattr__(server.options, "faults", None)
        samples = [sample for (sample,) in await asyncio.gather(*calls)]
    assert [sample.value for sample in samples] == [4] * 6
    assert (len(lost(desk)), len(back(desk))) == (1, 1)


async def test_other_servers_carry_on_and_only_the_loss_of_all_is_an_outage() -> None:
    responder = build_responder(seed=3)
    async with FakeServer(responder) as goes:
        async with FakeServer(responder, ServerOptions(latency=Latency(0.02))) as stays:
            urls = [stays.base_url, goes.base_url]
            desk = await open_desk("", role={"base_url": urls}, routing="round_robin", retry_wait_s=0.02)
            assert all([await respond(desk, f"Early {index}") for index in range(4)])
            port = port_of(goes)
            await goes.__aexit__()
            assert all(await asyncio.gather(*(respond(desk, f"Middle {index}") for index in range(8))))
            assert not lost(desk)
        calls = [asyncio.create_task(respond(desk, f"Late {index}")) for index in range(8)]
        while not lost(desk):
            await asyncio.sleep(0.005)
        async with FakeServer(responder, ServerOptions(port=port)) as again:
            assert all(await asyncio.gather(*calls))
            assert len(again.finished) == 8
    assert {event.endpoint for event in lost(desk)} == set(urls)
    assert [event.endpoint for event in back(desk)] == [again_url(port)]


def note(circuit: Circuit, failure: CallFailure, call: object, times: int = 1) -> None:
    for _ in range(times):
        circuit.note_failure(failure, call, endpoint="e", first_pause_s=1.0)


def test_what_opens_a_circuit() -> None:
    refused, one_call, few, many, gateway = (Circuit() for _ in range(5))
    note(refused, REFUSED, "a")
    note(one_call, BROKEN, "a", 50)
    note(few, BROKEN, "a", 3)
    note(few, BROKEN, "b")
    note(many, BROKEN, "a", 4)
    note(many, BROKEN, "b")
    note(gateway, GATEWAY, "a", 5)
    assert [one.is_open for one in (refused, one_call, few, many, gateway)] == [True, False, False, True, True]
    many.note_sign_of_life()
    note(many, BROKEN, "c")
    assert not many.is_open
