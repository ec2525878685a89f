"""Every finished call is committed before it is used, sent once, and never again."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from drpo_graph.calls.ledger import CallRecord, Ledger, call_key
from drpo_graph.errors import RunInterruptedError
from drpo_graph.models.request import Choice
from drpo_graph.records import Role, Usage
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from tests.support.fake_server import Latency, ServerOptions
from tests.support.roles import QUESTION, answer, by_content, failing, open_desk, parse_answer, script, serve


async def open_ledger(store: BaseStore | None = None, stop: StopSignal | None = None) -> Ledger:
    ledger = Ledger(Archive(store or InMemoryStore(), "run"), stop or StopSignal())
    await ledger.load()
    return ledger


def record(text: str = "hi", *, role: Role = "critic", retries: dict[str, int] | None = None) -> CallRecord:
    usage = Usage(calls=1, prompt_tokens=10, completion_tokens=5, cached_tokens=2)
    return CallRecord(role=role, model="m", choices=(Choice(text=text),), usage=usage, retries=retries or {})


class Caller:
    """A call that ends when told to, and counts how often it was made."""

    def __init__(self, result: CallRecord | Exception | None = None) -> None:
        self.result = result or record()
        self.num_made = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> CallRecord:
        self.num_made += 1
        await self.may_end.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def at_once(result: CallRecord) -> Callable[[], Awaitable[CallRecord]]:
    async def call() -> CallRecord:
        return result

    return call


async def test_equal_calls_in_flight_are_made_once() -> None:
    ledger, caller = await open_ledger(), Caller()
    waiters = [asyncio.create_task(ledger.once("key", caller)) for _ in range(5)]
    other = asyncio.create_task(ledger.once("other", caller))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ledger.num_in_flight == 2
    caller.may_end.set()
    entries = await asyncio.gather(*waiters, other)
    assert caller.num_made == 2
    assert [entry.record for entry in entries] == [record()] * 6
    await ledger.drain()
    assert ledger.num_in_flight == 0


async def test_committed_call_is_never_made_again() -> None:
    store = InMemoryStore()
    ledger = await open_ledger(store)
    first = await ledger.once("key", at_once(record("first")))
    assert not first.is_replayed
    for again in (ledger, await open_ledger(store)):
        assert again.holds("key")
        caller = Caller()
        entry = await again.once("key", caller)
        assert (entry.record, entry.is_replayed) == (record("first"), True)
        assert caller.num_made == 0


async def test_call_is_stored_before_anyone_has_its_result() -> None:
    store = InMemoryStore()
    ledger = await open_ledger(store)
    stored: list[object] = []

    def look(_: CallRecord) -> None:
        stored.append(store.get(("drpo", "run", "calls"), "key"))

    await ledger.once("key", at_once(record()), on_commit=look)
    assert stored != [None]
    assert len(stored) == 1


async def test_call_outlives_its_waiters() -> None:
    store, caller = InMemoryStore(), Caller()
    ledger = await open_ledger(store)
    waiter = asyncio.create_task(ledger.once("key", caller))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    late = asyncio.create_task(ledger.once("key", caller))
    await asyncio.sleep(0)
    caller.may_end.set()
    assert (await late).record == record()
    await ledger.drain()
    assert caller.num_made == 1
    assert (await open_ledger(store)).holds("key")


async def test_failed_call_fails_all_its_waiters_and_may_be_made_again() -> None:
    ledger, caller = await open_ledger(), Caller(ValueError("boom"))
    waiters = [asyncio.create_task(ledger.once("key", caller)) for _ in range(3)]
    caller.may_end.set()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(result) for result in results] == ["boom"] * 3
    await ledger.drain()
    assert not ledger.holds("key")
    assert (await ledger.once("key", at_once(record()))).record == record()


async def test_call_that_fails_after_its_waiter_is_gone_leaves_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    ledger, caller = await open_ledger(), Caller(ValueError("boom"))
    waiter = asyncio.create_task(ledger.once("key", caller))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    caller.may_end.set()
    await ledger.drain()
    del waiter, caller
    assert not caplog.records


async def test_usage_and_retries_are_counted_again_on_load() -> None:
    store = InMemoryStore()
    ledger = await open_ledger(store)
    await ledger.once("1", at_once(record(role="critic", retries={"timeout": 2})))
    await ledger.once("2", at_once(record(role="critic", retries={"timeout": 1, "http_429": 1})))
    await ledger.once("3", at_once(record(role="base")))
    await ledger.once("3", at_once(record(role="base")))
    for one in (ledger, await open_ledger(store)):
        assert one.usage_by_role["critic"] == Usage(calls=2, prompt_tokens=20, completion_tokens=10, cached_tokens=4)
        assert one.usage_by_role["base"].calls == 1
        assert one.total_usage().calls == 3
        assert one.retries_by_kind == {"timeout": 3, "http_429": 1}


async def test_runs_of_one_store_have_ledgers_of_their_own() -> None:
    store = InMemoryStore()
    await (await open_ledger(store)).once("key", at_once(record()))
    other = Ledger(Archive(store, "other.run"), StopSignal())
    await other.load()
    assert not other.holds("key")
    assert other.total_usage() == Usage()


def test_key_is_the_content_whatever_its_order() -> None:
    assert call_key({"a": 1, "b": [1, 2]}) == call_key({"b": [1, 2], "a": 1})
    assert call_key({"a": 1}) != call_key({"a": "1"})
    assert len(call_key({})) == 64


# Stopping


async def test_after_a_stop_no_call_begins_and_those_in_flight_are_committed() -> None:
    stop, caller = StopSignal(), Caller()
    store = InMemoryStore()
    ledger = await open_ledger(store, stop)
    await ledger.once("done", at_once(record("done")))
    running = asyncio.create_task(ledger.once("running", caller))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stop.request("enough")
    assert stop.reason == "enough"
    with pytest.raises(RunInterruptedError, match="enough"):
        await ledger.once("new", at_once(record()))
    # What was paid for may still be read, and joined.
    assert (await ledger.once("done", Caller())).is_replayed
    joined = asyncio.create_task(ledger.once("running", Caller()))
    draining = asyncio.create_task(ledger.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    caller.may_end.set()
    await draining
    assert (await running).record == (await joined).record
    assert (await open_ledger(store)).holds("running")


async def test_stop_ends_every_wait() -> None:
    stop = StopSignal()
    waits = [asyncio.create_task(stop.guard(asyncio.sleep(3600))) for _ in range(3)]
    await asyncio.sleep(0)
    stop.request("enough")
    results = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 1)
    assert {type(result) for result in results} == {RunInterruptedError}
    with pytest.raises(RunInterruptedError):
        await stop.guard(asyncio.sleep(3600))


async def test_wait_that_nobody_stops_takes_its_time_and_no_more() -> None:
    await asyncio.wait_for(StopSignal().guard(asyncio.sleep(0)), 1)
    waiting = asyncio.create_task(StopSignal().guard(asyncio.sleep(3600)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(asyncio.all_tasks()) <= 3  # This one, and what was just cancelled.


# Through the models of a run


async def test_equal_questions_are_paid_for_once() -> None:
    options = ServerOptions(latency=Latency(0.05))
    async with serve(by_content({}, answer(4)), options) as (server, desk):
        found = await asyncio.gather(*(desk.models.critic.ask(QUESTION, parse=parse_answer) for _ in range(4)))
        assert [samples[0].value for samples in found] == [4] * 4
        await desk.models.metrics.ask(QUESTION, parse=parse_answer)
        # Another role is another question.
        assert len(server.finished) == 2
    assert desk.ledger.usage_by_role["critic"].calls == 1


async def test_cancelled_question_is_still_paid_for_and_kept() -> None:
    options = ServerOptions(latency=Latency(0.1))
    async with serve(by_content({}, answer(4)), options) as (server, desk):
        asking = asyncio.create_task(desk.models.critic.ask(QUESTION, parse=parse_answer))
        while not server.log:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await desk.ledger.drain()
        again = await open_desk(server.base_url, store=desk.store)
        (sample,) = await again.models.critic.ask(QUESTION, parse=parse_answer)
        assert sample.value == 4
        assert len(server.finished) == 1
    # The event came with the commit, though nobody waited for it any more.
    assert len(desk.calls) == 1


async def test_resumed_run_counts_what_the_former_process_used() -> None:
    async with serve(script(failing(503), answer(4))) as (server, desk):
        await desk.models.critic.ask(QUESTION, parse=parse_answer)
        again = await open_desk(server.base_url, store=desk.store)
    assert again.ledger.total_usage() == desk.ledger.total_usage()
    assert again.ledger.total_usage().completion_tokens == 2
    assert again.ledger.retries_by_kind == {"http_503": 1}
