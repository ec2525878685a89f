"""A server that goes away in mid-run: calls wait without spending tries, one of them probes, and the run goes on."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from pydantic import JsonValue

from drpo_graph.errors import ModelCallError, RunInterruptedError
from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import EndpointBack, EndpointLost
from drpo_graph.models.context_window import ContextWindow
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.outages import Circuit, Waiting
from drpo_graph.models.request import Request
from drpo_graph.stop import StopSignal
from tests.support.fake_server import FakeServer, FaultPlan, Latency, Reply, ServerOptions
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


def circuit_of(desk: Desk) -> Circuit:
    return desk.models.base.channel.client.replicas[0].gate().circuit_of("openai:m")


def again_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


async def test_only_one_call_at_a_time_tries_a_lost_server_and_ever_more_seldom() -> None:
    async with after_loss(30, max_concurrency=10) as (desk, _, _calls):
        await until(desk, 14)
        circuit = circuit_of(desk)
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


async def leave_a_lost_server_behind() -> tuple[str, int]:
    """Return the URL and the port of a server that a run has waited for in vain."""
    async with after_loss(1, max_outage_s=0.1) as (desk, port, (call,)):
        with pytest.raises(ModelCallError, match="has been away"):
            await call
        circuit = circuit_of(desk)
    assert circuit.is_open
    circuit.probe_at = time.monotonic() + 3600
    return again_url(port), port


@pytest.mark.parametrize("max_outage_s", [0, 0.1])
async def test_a_server_that_a_former_run_gave_up_is_tried_by_the_next_one(max_outage_s: float) -> None:
    url, port = await leave_a_lost_server_behind()
    async with FakeServer(build_responder(seed=3), ServerOptions(port=port)) as again:
        desk = await open_desk(url, run_id="next", retry_wait_s=0.02, max_outage_s=max_outage_s)
        assert all(await asyncio.gather(*(respond(desk, f"Question {index}") for index in range(4))))
        assert len(again.finished) == 4
    assert not circuit_of(desk).is_open


async def test_a_run_waits_its_own_time_for_a_server_that_a_former_run_gave_up() -> None:
    url, _ = await leave_a_lost_server_behind()
    desk = await open_desk(url, run_id="next", retry_wait_s=0.02, max_outage_s=0.3)
    began = time.monotonic()
    with pytest.raises(ModelCallError, match="has been away"):
        await respond(desk, "Question")
    assert time.monotonic() - began >= 0.3
    assert len(desk.retries) == 1


async def test_a_server_that_has_ended_for_good_is_not_waited_for() -> None:
    async with after_loss(0, max_outage_s=600) as (desk, port, _):
        ended: list[str] = []
        role = desk.models.base
        gone = replace(role, channel=replace(role.channel, has_ended=lambda endpoint: endpoint in ended))
        call = asyncio.create_task(gone.respond([{"role": "user", "content": "Question"}]))
        await until(desk, 3)
        assert not call.done()
        ended.append(again_url(port))
        with pytest.raises(ModelCallError, match="and its server has ended"):
            await call


async def test_a_slow_answer_to_a_probe_is_let_finish() -> None:
    async with after_loss(4, max_outage_s=1.0) as (desk, port, calls):
        await until(desk, 4)
        slow = ServerOptions(port=port, latency=Latency(1.5))
        async with FakeServer(build_responder(seed=3), slow):
            assert all(await asyncio.gather(*calls))
    assert back(desk)[0].lost_s > 1.0


async def test_a_stop_does_not_wait_for_a_probe_that_hangs() -> None:
    says = by_content({}, answer(4))
    async with serve(says, timeout_s=80, retry_wait_s=0.01) as (server, desk):
        await desk.models.critic.ask([{"role": "user", "content": "one"}], parse=parse_answer)
        object.__setattr__(server.options, "faults", FaultPlan(1.0, kinds=("503",), max_per_request=100))
        calls = [
            asyncio.create_task(desk.models.critic.ask([{"role": "user", "content": f"{n}"}], parse=parse_answer))
            for n in range(6)
        ]
        await until(desk, 12)
        object.__setattr__(server.options, "faults", FaultPlan(1.0, kinds=("hang",), max_per_request=100))
        num_before = len(server.log)
        while len(server.log) == num_before or not circuit_of(desk).is_probing:
            await asyncio.sleep(0.005)
        desk.context.stop.request("enough")
        await asyncio.wait_for(desk.ledger.drain(), 20)
        results = await asyncio.gather(*calls, return_exceptions=True)
        gate = desk.models.critic.channel.client.replicas[0].gate()
        assert (gate.num_in_flight, desk.ledger.budget.num_in_flight) == (0, 0)
    assert {type(one) for one in results} == {RunInterruptedError}


async def test_a_model_that_is_lost_behind_a_gateway_is_waited_for_while_others_answer() -> None:
    is_lost = False

    def says(body: dict[str, object]) -> Reply:
        return failing(503, "no healthy upstream") if is_lost and body["model"] == "other" else answer(4)

    async with FakeServer(says) as server:
        other = {"model": "openai:other", "base_url": server.base_url}
        desk = await open_desk(server.base_url, critic=other, max_retries=2, retry_wait_s=0.02)

        async def ask(text: str) -> int | None:
            return (await desk.models.critic.ask([{"role": "user", "content": text}], parse=parse_answer))[0].value

        assert await ask("Early") == 4
        is_lost = True
        calls = [asyncio.create_task(ask(f"Late {index}")) for index in range(4)]
        while len(desk.retries) < 14:
            assert await respond(desk, f"Meanwhile {len(server.finished)}")
        is_lost = False
        assert await asyncio.gather(*calls) == [4] * 4
    assert (len(lost(desk)), len(back(desk))) == (1, 1)


async def test_several_servers_that_die_with_calls_in_flight_are_waited_for() -> None:
    responder, slow = build_responder(seed=3), FaultPlan(1.0, kinds=("hang",), max_per_request=100)
    async with FakeServer(responder) as one, FakeServer(responder) as two:
        urls, port = [one.base_url, two.base_url], port_of(two)
        role: dict[str, JsonValue] = {"base_url": list(urls)}
        desk = await open_desk("", role=role, routing="round_robin", retry_wait_s=0.05, max_retries=1, max_outage_s=60)
        assert all([await respond(desk, f"Early {index}") for index in range(4)])
        for server in (one, two):
            object.__setattr__(server.options, "faults", slow)
        num_before = len(one.log) + len(two.log)
        calls = [asyncio.create_task(respond(desk, f"Late {index}")) for index in range(4)]
        while len(one.log) + len(two.log) < num_before + 4:
            await asyncio.sleep(0.005)
    while not lost(desk):
        await asyncio.sleep(0.005)
    async with FakeServer(responder, ServerOptions(port=port)):
        assert all(await asyncio.gather(*calls))


async def test_waiting_calls_do_not_ask_a_lost_server_to_count_their_tokens() -> None:
    counted: list[str] = []

    async def count(request: Request) -> int | None:
        counted.append(request.messages[-1]["content"])
        return None

    async with after_loss(0) as (desk, _, _calls):
        role = desk.models.base
        channel = replace(role.channel, client=replace(role.channel.client, window=ContextWindow(1, count)))
        asking = replace(role, channel=channel)
        first = asyncio.create_task(asking.respond([{"role": "user", "content": "First"}]))
        await until(desk, 1)
        others = [asyncio.create_task(asking.respond([{"role": "user", "content": f"{n}"}])) for n in range(20)]
        await until(desk, 4)
        # No more than are sent: one probe at a time.
        assert len(counted) <= len(desk.retries) + 1
        for call in (first, *others):
            call.cancel()


def note(circuit: Circuit, failure: CallFailure, call: object, times: int = 1) -> None:
    for _ in range(times):
        circuit.note_failure(failure, call, endpoint="e", first_pause_s=1.0)


async def test_a_call_that_begins_to_wait_as_its_server_comes_back_is_woken() -> None:
    circuit, emitter = Circuit(), Emitter("run")
    note(circuit, REFUSED, "a")
    circuit.is_probing = True
    admitted = asyncio.ensure_future(
        Waiting().admit(
            [circuit], max_outage_s=600, has_ended=lambda _: False, emitter=emitter, guard=StopSignal().guard
        )
    )
    # It has looked, and is about to wait: what it waits with runs in the loop's next turn only.
    await asyncio.sleep(0)
    circuit.note_sign_of_life()
    circuit.end_probe()
    assert await asyncio.wait_for(admitted, 30) is None


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


def test_what_a_circuit_says_of_other_models_there() -> None:
    family: dict[str, Circuit] = {}
    for model in ("one", "two", "three"):
        family[model] = Circuit(family)
    one, two, three = family.values()
    note(three, GATEWAY, "a", 5)
    assert [each.is_open for each in family.values()] == [False, False, True]
    note(one, REFUSED, "b")
    assert [each.is_open for each in family.values()] == [True, True, True]
    assert one.outage is two.outage
    # The server takes connections again, which says nothing of a model that was lost before it went.
    two.note_sign_of_life()
    assert [each.is_open for each in family.values()] == [False, False, True]


def test_only_failures_in_a_row_count_as_exhausted() -> None:
    circuit = Circuit()
    assert circuit.note_exhausted() == 1
    circuit.note_sign_of_life()
    assert circuit.note_exhausted() == 2
    circuit.note_success()
    assert [circuit.note_exhausted(), circuit.note_exhausted()] == [1, 2]
