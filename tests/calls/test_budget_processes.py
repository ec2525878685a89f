"""One budget over a run's processes: what was spent is counted once, however a process ended."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import Op, Result
from langgraph.store.memory import InMemoryStore

from drpo_graph.calls import ledger as ledger_module
from drpo_graph.calls.budget import Budget
from drpo_graph.calls.ledger import CallRecord, Ledger
from drpo_graph.errors import BudgetSpentError
from drpo_graph.graph import build_graph
from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.settings.limits import Amount, Cap, Limits
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, oracle_context
from tests.support.spending import MODEL, Clock, demand, spend, usage
from tests.support.world import World


async def test_time_runs_on_over_processes_and_stands_still_between_them() -> None:
    clock, store = Clock(), InMemoryStore()
    limits = Limits(max_time=100)
    first = Budget(limits, clock=clock)
    await first.load(Archive(store, "run"))
    clock.now += 60
    await spend(first, demand(), usage(1, 1))
    await first.save()
    clock.now += 10_000
    second = Budget(limits, clock=clock)
    await second.load(Archive(store, "run"))
    assert second.elapsed_s == 60
    clock.now += 39
    await spend(second, demand(), usage(1, 1))
    clock.now += 1
    with pytest.raises(BudgetSpentError, match="100 of 100 s"):
        await spend(second, demand(), usage(1, 1))


async def test_what_a_killed_process_had_in_flight_counts_as_reserved() -> None:
    store, limits = InMemoryStore(), Limits(max_tokens=1000)
    killed = Budget(limits)
    await killed.load(Archive(store, "run"))
    async with killed.hold(demand(0, 300)) as hold:
        async with killed.hold(demand(0, 200)) as inner:
            # Killed here: nothing of what follows reaches the store.
            after = Budget(limits)
            await after.load(Archive(store, "run"))
            inner.settle(usage(0, 1))
        hold.settle(usage(0, 1))
    assert after.spent == Amount(2, 500, 0)


class HesitantStore(InMemoryStore):
    """A store that lets others go first before and after each write, as a remote one does."""

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations, some time after it was asked for and some before it returns."""
        for _ in range(3):
            await asyncio.sleep(0)
        found = await super().abatch(ops)
        for _ in range(3):
            await asyncio.sleep(0)
        return found

    def copy(self) -> InMemoryStore:
        """Return what a killed process leaves."""
        left = InMemoryStore()
        left._data.update({namespace: dict(items) for namespace, items in self._data.items()})
        return left


async def open_ledger(store: InMemoryStore, limits: Limits, clock: Clock | None = None) -> Ledger:
    ledger = Ledger(Archive(store, "run"), StopSignal(), Budget(limits, clock=clock or Clock()))
    await ledger.load()
    return ledger


def make_call(
    ledger: Ledger, sent: list[str], key: str, end: Exception | None = None
) -> Callable[[], Awaitable[CallRecord]]:
    """Return a call that notes when it is sent; it takes a while."""

    async def call() -> CallRecord:
        async with ledger.budget.hold(demand(0, 100, key=key)) as hold:
            sent.append(key)
            for _ in range(5):
                await asyncio.sleep(0)
            if end is not None:
                raise end
            hold.settle(usage(0, 10))
        return CallRecord(role="base", model=MODEL, choices=(Choice(text="x"),), usage=usage(0, 10))

    return call


async def test_wherever_a_process_is_killed_every_call_counts_once() -> None:
    store, limits, sent = HesitantStore(), Limits(max_calls=20), list[str]()
    ledger = await open_ledger(store, limits)
    tasks = [
        asyncio.create_task(
            ledger.once(str(number), make_call(ledger, sent, str(number), TimeoutError() if number % 4 == 3 else None))
        )
        for number in range(12)
    ]
    num_looks = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        after = (await open_ledger(store.copy(), limits)).budget.spent
        alive = ledger.budget.spent.plus(ledger.budget.reserved)
        # What was reserved is stored a moment before it is sent.
        assert len(sent) <= after.calls <= alive.calls
        assert len(sent) * 10 <= after.tokens <= len(sent) * 10 + (alive.calls - len(sent)) * 100 + 12 * 90
        num_looks += 1
    await ledger.drain()
    assert num_looks > 20
    assert (await open_ledger(store, limits)).budget.spent == Amount(12, 9 * 10 + 3 * 100, 0) == ledger.budget.spent


async def test_a_call_that_was_lost_counts_beside_the_one_that_was_made_for_it() -> None:
    store, limits, sent = HesitantStore(), Limits(max_calls=20), list[str]()
    killed = await open_ledger(store, limits)
    task = asyncio.create_task(killed.once("a", make_call(killed, sent, "a")))
    while not sent:
        await asyncio.sleep(0)
    left = store.copy()
    await task
    again = await open_ledger(left, limits)
    await again.once("a", make_call(again, sent, "a"))
    # Killed once more, at any later time.
    assert (await open_ledger(left, limits)).budget.spent == Amount(2, 110, 0)


async def test_saves_that_wait_for_their_turn_share_one_write() -> None:
    class Counting(HesitantStore):
        num_writes = 0

        async def abatch(self, ops: Iterable[Op]) -> list[Result]:
            given = list(ops)
            self.num_writes += any(getattr(op, "namespace", ("",))[-1] == "budget" for op in given)
            return await super().abatch(given)

    store, sent = Counting(), list[str]()
    ledger = await open_ledger(store, Limits(max_calls=100))
    await asyncio.gather(*(ledger.once(str(number), make_call(ledger, sent, str(number))) for number in range(64)))
    assert len(sent) == 64
    assert store.num_writes <= 4


async def test_a_cap_that_a_resumed_run_is_given_knows_what_was_lost_without_one() -> None:
    clock, store = Clock(), InMemoryStore()
    unbounded = Budget(clock=clock)
    await unbounded.load(Archive(store, "run"))
    with pytest.raises(TimeoutError):
        async with unbounded.hold(demand(0, 300)):
            raise TimeoutError
    clock.now += 2
    async with unbounded.hold(demand(0, 200)) as hold:
        after = Budget(Limits(max_tokens=1000))
        await after.load(Archive(store, "run"))
        hold.settle(usage(0, 1))
    assert after.spent == Amount(2, 500, 0)


async def test_a_call_that_was_cancelled_before_it_was_sent_counts_nothing() -> None:
    budget = Budget(Limits(max_tokens=1000))
    await budget.load(Archive(HesitantStore(), "run"))
    task = asyncio.create_task(spend(budget, demand(0, 300), usage(0, 1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert budget.reserved.tokens == 300
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert budget.spent == budget.reserved == Amount()


async def test_the_time_of_a_killed_process_counts_though_no_call_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_KEEP_TIME_EVERY_S", 0.01)
    clock, store, limits = Clock(), InMemoryStore(), Limits(max_time=1000)
    ledger, may_end = await open_ledger(store, limits, clock), asyncio.Event()

    async def call() -> CallRecord:
        await may_end.wait()
        return CallRecord(role="base", model=MODEL, choices=(Choice(text="x"),), usage=usage(0, 10))

    task = asyncio.create_task(ledger.once("a", call))
    await asyncio.sleep(0)
    clock.now += 90
    async with asyncio.timeout(60):
        while (await open_ledger(store, limits, clock)).budget.elapsed_s < 90:
            await asyncio.sleep(0.01)
    may_end.set()
    await task
    await ledger.drain()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


class LostStore(InMemoryStore):
    """A store that can neither be read nor written once it is lost."""

    is_lost = False

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations.

        Raises:
            OSError: the store is lost.
        """
        if self.is_lost:
            raise OSError("the store is lost")
        return await super().abatch(ops)


@pytest.mark.parametrize(("cause", "is_told"), [(OSError("the store is lost"), False), (ValueError("other"), True)])
async def test_a_lost_store_is_told_once(cause: Exception, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    store = LostStore()
    ledger = await open_ledger(store, Limits())
    store.is_lost = True
    ledger.stop.request("The run has failed.", cause)
    await ledger.drain()
    # The error that stops a run because of its store says what this warning would.
    assert [record.getMessage() for record in caplog.records] == (
        ["What the run has spent could not be stored: the store is lost"] if is_told else []
    )


# Whole runs


class CostlyOracle(OracleTransport):
    """The synthetic world, whose replies are as long as half of what they may be."""

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply."""
        num_bytes = sum(len(one["content"].encode()) for one in request.messages)
        used = usage(num_bytes // 2, request.max_tokens * request.num_samples // 2)
        return replace(await super().send(request), usage=used)


class Place:
    """Where one run is kept, and what its processes asked and spent."""

    def __init__(self) -> None:
        self.saver, self.store = InMemorySaver(), InMemoryStore()
        self.asked: list[tuple[str, str]] = []
        self.spent = Amount()

    async def attempt(self, **limits: Any) -> object:
        """Start or resume the run; return its result, or ``None`` when its budget is spent."""
        world = World(seed=3)
        settings = fake_settings(depth=4, queries_per_level=2, **{"prices": {"fake:world": PRICE}, **limits})
        transport = CostlyOracle(Oracle(world))
        context = oracle_context(settings, transport, store=self.store)
        graph = build_graph(settings, checkpointer=self.saver)
        config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
        is_new = (await graph.aget_state(config)).created_at is None
        given: Any = {"queries": list(world.train_queries)} if is_new else None
        try:
            output = await graph.ainvoke(given, config, context=context, durability="async")  # type: ignore[arg-type]
        except BudgetSpentError:
            output = {"result": None}
        self.asked += transport.requests
        ledger = Ledger(Archive(self.store, "t"), StopSignal(), Budget(settings))
        await ledger.load()
        self.spent = ledger.budget.spent
        assert settings.find_exceeded(self.spent) is None
        assert self.spent.calls == len(self.asked)
        return output["result"]


PRICE = {"input": 1000.0, "output": 2000.0}


@pytest.mark.parametrize("cap", ["max_calls", "max_tokens", "max_cost"])
async def test_a_run_that_is_resumed_with_larger_caps_ends_as_an_unbroken_one(cap: Cap) -> None:
    whole, place = Place(), Place()
    unbroken = await whole.attempt()
    total = {
        "max_calls": whole.spent.calls,
        "max_tokens": whole.spent.tokens,
        "max_cost": whole.spent.picodollars / 1e12,
    }[cap]
    for share in (0.2, 0.5, 0.8):
        num_asked = len(place.asked)
        assert await place.attempt(**{cap: math.ceil(share * total)}) is None
        assert len(place.asked) > num_asked
    result = await place.attempt(**{cap: math.ceil(1.5 * total)})
    assert result == unbroken
    assert place.spent == whole.spent
    assert Counter(place.asked) == Counter(whole.asked)


@pytest.mark.parametrize("caps", [(10, 25, 40), (1, 2, 3)])
async def test_no_call_beyond_a_cap_is_made_and_each_is_used(caps: tuple[int, ...]) -> None:
    place = Place()
    for cap in caps:
        assert await place.attempt(max_calls=cap) is None
        assert len(place.asked) == len(set(place.asked)) == cap


async def test_a_run_stops_when_its_time_is_up() -> None:
    clock, world = Clock(), World(seed=3)
    settings = fake_settings(depth=4, queries_per_level=2, max_time="1m")

    def tick(_: object) -> None:
        clock.now += 2

    transport = OracleTransport(Oracle(world), before=tick)
    context = replace(oracle_context(settings, transport, store=InMemoryStore()), clock=clock)
    with pytest.raises(BudgetSpentError, match=r"60 of 60 s \(--max-time\)"):
        await build_graph(settings).ainvoke(
            {"queries": list(world.train_queries)},
            {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT},
            context=context,  # type: ignore[arg-type]
        )
    assert len(transport.requests) == 30
