"""The budget: reserved before a call, settled with what it used, one for all roles and processes of a run."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from drpo_graph.archive import Archive
from drpo_graph.budget import Budget, Demand
from drpo_graph.errors import BudgetSpentError
from drpo_graph.events import CallFinished
from drpo_graph.graph import RECURSION_LIMIT, build_graph
from drpo_graph.limits import Amount, Limits, parse_duration
from drpo_graph.prices import Price
from drpo_graph.records import Usage
from tests.support.fake_server import FaultPlan, Latency, ServerOptions
from tests.support.oracle import Oracle, OracleTransport
from tests.support.roles import Desk, answer, by_content, failing, parse_answer, script, serve
from tests.support.searches import fake_settings, oracle_context
from tests.support.world import World

MODEL = "openai:m"
PRICES = {MODEL: {"input": 1000.0, "output": 2000.0}}
ANSWER = by_content({}, answer(4))


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def demand(num_bytes: int = 0, max_completion: int = 0) -> Demand:
    return Demand(MODEL, num_bytes, max_completion)


def usage(prompt: int = 0, completion: int = 0) -> Usage:
    return Usage(calls=1, prompt_tokens=prompt, completion_tokens=completion)


async def spend(budget: Budget, wanted: Demand, used: Usage) -> None:
    async with budget.hold(wanted) as hold:
        hold.settle(used)


async def ask(desk: Desk, number: int) -> None:
    question = [{"role": "user", "content": f"Question {number}?"}]
    await desk.models.critic.ask(question, parse=parse_answer)  # type: ignore[arg-type]


# Arithmetic


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.5", 0.5), ("90s", 90), ("90m", 5400), ("2h", 7200), ("1d", 86400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert Limits.model_validate({"max_time": text}).max_time == seconds


def test_durations_add_up() -> None:
    assert parse_duration("1h30m") == 5400


@pytest.mark.parametrize("text", ["", "soon", "2 h", "h", "-90", "0", "nan", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_time"):
        Limits.model_validate({"max_time": text})


async def test_a_reservation_is_replaced_by_what_was_used() -> None:
    budget = Budget(Limits(max_tokens=1000, prices={MODEL: Price(input=1000, output=2000)}))
    async with budget.hold(demand(100, 50)) as hold:
        assert budget.reserved.tokens == 150
        assert budget.spent == Amount()
        hold.settle(usage(20, 10))
    assert budget.reserved == Amount()
    assert budget.spent == Amount(1, 30, 40_000_000_000)
    assert budget.spent_of("max_cost") == 0.04


async def test_a_call_waits_for_room_and_gets_it_when_less_was_used_than_reserved() -> None:
    budget = Budget(Limits(max_tokens=150))
    order: list[str] = []

    async def second() -> None:
        async with budget.hold(demand(0, 100)) as hold:
            order.append("second")
            hold.settle(usage(0, 100))

    async with budget.hold(demand(0, 100)) as hold:
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        order.append("first")
        hold.settle(usage(0, 40))
    await waiting
    assert order == ["first", "second"]
    assert budget.spent.tokens == 140


async def test_the_run_stops_only_when_nothing_in_flight_can_make_room() -> None:
    budget = Budget(Limits(max_tokens=150))
    async with budget.hold(demand(0, 100)) as hold:
        waiting = asyncio.create_task(spend(budget, demand(0, 100), usage(0, 1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        hold.settle(usage(0, 90))
    with pytest.raises(BudgetSpentError) as caught:
        await waiting
    assert caught.value.resume_flags == "--max-tokens 300"
    assert "90 of 150 tokens spent (--max-tokens), it may need 100 tokens" in str(caught.value)


async def test_the_cap_that_is_proposed_has_room_for_the_next_call() -> None:
    for limits, flags in (
        (Limits(max_tokens=100), "--max-tokens 700"),
        (Limits(max_cost=0.002, prices={MODEL: Price(input=1, output=1000)}), "--max-cost 0.7"),
    ):
        with pytest.raises(BudgetSpentError) as caught:
            await spend(Budget(limits), demand(0, 700), usage(0, 1))
        assert caught.value.resume_flags == flags


async def test_what_models_counted_before_bounds_the_next_prompt() -> None:
    budget = Budget(Limits(max_tokens=10_000))
    async with budget.hold(demand(1000)) as hold:
        assert budget.reserved.tokens == 1000
        hold.settle(usage(200, 1))
    async with budget.hold(demand(1000)) as hold:
        assert budget.reserved.tokens == 250
        hold.settle(usage(200, 1))


async def test_a_server_that_tells_no_usage_is_taken_to_have_used_all_it_might() -> None:
    budget = Budget(Limits(max_tokens=10_000))
    await spend(budget, demand(30, 70), usage())
    assert budget.spent == Amount(1, 100, 0)


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


async def test_a_timeout_counts_as_reserved_and_an_error_counts_nothing() -> None:
    budget = Budget(Limits(max_tokens=1000))
    with pytest.raises(TimeoutError):
        async with budget.hold(demand(0, 300)):
            raise TimeoutError
    assert budget.spent == Amount(1, 300, 0)
    with pytest.raises(ConnectionRefusedError):
        async with budget.hold(demand(0, 300)):
            raise ConnectionRefusedError
    assert budget.spent == Amount(1, 300, 0)
    assert budget.reserved == Amount()


Calls = list[tuple[int, int, float, str]]
calls = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(0, 60), st.floats(0, 1), st.sampled_from(["ok", "ok", "timeout", "refused"])
    ),
    max_size=40,
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    calls=calls,
    max_calls=st.none() | st.integers(1, 30),
    max_tokens=st.none() | st.integers(1, 800),
    max_cost=st.none() | st.floats(0.001, 1.0),
    seed=st.integers(0, 10**6),
)
def test_spent_and_reserved_never_pass_a_cap_and_every_waiter_ends(
    calls: Calls, max_calls: int | None, max_tokens: int | None, max_cost: float | None, seed: int
) -> None:
    limits = Limits.model_validate(
        {"max_calls": max_calls, "max_tokens": max_tokens, "max_cost": max_cost, "prices": PRICES}
    )
    budget, draw, outcomes = Budget(limits), random.Random(seed), Counter[str]()

    def check() -> None:
        assert min(*budget.spent, *budget.reserved, budget.num_in_flight) >= 0
        assert limits.find_exceeded(budget.spent.plus(budget.reserved)) is None

    async def call(num_bytes: int, max_completion: int, share: float, end: str) -> None:
        try:
            # A byte may be a token: a model whose bytes were cheaper before would pass its reservation.
            wanted = Demand(f"{MODEL}", 0, num_bytes + max_completion)
            async with budget.hold(wanted) as hold:
                check()
                for _ in range(draw.randrange(4)):
                    await asyncio.sleep(0)
                check()
                if end == "timeout":
                    raise TimeoutError
                if end == "refused":
                    raise ConnectionRefusedError
                hold.settle(usage(0, int(share * wanted.max_completion)))
            outcomes["ok"] += 1
        except BudgetSpentError:
            assert budget.num_in_flight == 0
            outcomes["spent"] += 1
        except (TimeoutError, ConnectionRefusedError):
            outcomes["failed"] += 1
        check()

    async def run() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(call(*one) for one in calls))

    asyncio.run(run())
    assert outcomes.total() == len(calls)
    assert budget.reserved == Amount()
    if max_calls is None and max_tokens is None and max_cost is None:
        assert not outcomes["spent"]


async def test_a_cancelled_waiter_lets_the_next_one_in() -> None:
    budget = Budget(Limits(max_tokens=100))
    async with budget.hold(demand(0, 60)) as hold:
        large = asyncio.create_task(spend(budget, demand(0, 100), usage(0, 1)))
        small = asyncio.create_task(spend(budget, demand(0, 30), usage(0, 1)))
        await asyncio.sleep(0.01)
        # In order of arrival: the small one would fit, and waits.
        assert not small.done()
        large.cancel()
        await small
        hold.settle(usage(0, 60))
    assert budget.spent.tokens == 61


# Calls against a server


@pytest.mark.parametrize(
    "caps",
    [{"max_calls": 20}, {"max_tokens": 60_000}, {"max_cost": 110.0, "prices": PRICES}, {"max_calls": 1}],
    ids=["calls", "tokens", "money", "one"],
)
async def test_64_calls_at_once_never_pass_a_cap(caps: dict[str, Any]) -> None:
    options = ServerOptions(latency=Latency(0.01, 0.5))
    async with serve(ANSWER, options, max_concurrency=64, max_reply_attempts=1, **caps) as (server, desk):
        ended = await asyncio.gather(*(ask(desk, number) for number in range(64)), return_exceptions=True)
        num_done = sum(one is None for one in ended)
        assert {type(one) for one in ended if one is not None} <= {BudgetSpentError}
        used, budget = desk.ledger.total_usage(), desk.ledger.budget
        assert used.calls == num_done == len(server.finished) == budget.spent.calls
        assert used.prompt_tokens + used.completion_tokens == budget.spent.tokens
        assert budget.limits.find_exceeded(budget.spent) is None
        assert budget.reserved == Amount()
        if "max_calls" in caps:
            assert len(server.log) / 2 == caps["max_calls"] == num_done
        if "max_cost" in caps:
            assert desk.ledger.total_cost == budget.spent_of("max_cost") > 0


async def test_a_replayed_call_costs_nothing() -> None:
    async with serve(ANSWER, max_calls=1) as (server, desk):
        for _ in range(3):
            await ask(desk, 1)
        assert len(server.finished) == 1
        with pytest.raises(BudgetSpentError, match=r"1 of 1 calls \(--max-calls\)\.$"):
            await ask(desk, 2)


async def test_refused_and_failed_requests_count_nothing_and_timeouts_count() -> None:
    async with serve(script(failing(503), failing(429), answer(4)), max_calls=1) as (_, desk):
        await ask(desk, 1)
        assert desk.ledger.budget.spent.calls == 1
    faults = FaultPlan(1.0, kinds=("hang",), max_per_request=1)
    async with serve(ANSWER, ServerOptions(faults=faults), timeout_s=0.3, max_calls=5) as (_, desk):
        await ask(desk, 1)
        assert desk.ledger.total_usage().calls == 1
        assert desk.ledger.budget.spent.calls == 2


async def test_the_samples_of_one_request_are_one_call_with_the_request_s_usage() -> None:
    async with serve(script(answer(1, 2, 3)), max_calls=1) as (_, desk):
        question = [{"role": "user", "content": "How good?"}]
        samples = await desk.models.critic.ask(question, parse=parse_answer, num_samples=3)  # type: ignore[arg-type]
        assert [sample.value for sample in samples] == [1, 2, 3]
        (event,) = [one for one in desk.events if isinstance(one, CallFinished)]
        assert desk.ledger.budget.spent == Amount(1, event.usage.prompt_tokens + event.usage.completion_tokens, 0)


# Whole runs


@pytest.mark.parametrize("caps", [(10, 25, 40), (1, 2, 3)])
async def test_a_run_that_is_resumed_with_larger_caps_ends_as_an_unbroken_one(caps: tuple[int, ...]) -> None:
    world = World(seed=3)

    async def attempt(saver: InMemorySaver, store: InMemoryStore, max_calls: int | None) -> tuple[Any, OracleTransport]:
        settings = fake_settings(depth=4, queries_per_level=2, max_calls=max_calls)
        transport = OracleTransport(Oracle(world))
        context = oracle_context(settings, transport, store=store)
        graph = build_graph(settings, checkpointer=saver)
        config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
        is_new = (await graph.aget_state(config)).created_at is None
        given: Any = {"queries": list(world.train_queries)} if is_new else None
        try:
            output = await graph.ainvoke(given, config, context=context, durability="async")  # type: ignore[arg-type]
        except BudgetSpentError:
            return None, transport
        return output["result"], transport

    unbroken, whole = await attempt(InMemorySaver(), InMemoryStore(), None)
    saver, store, asked = InMemorySaver(), InMemoryStore(), list[tuple[str, str]]()
    for cap in caps:
        result, transport = await attempt(saver, store, cap)
        asked += transport.requests
        assert result is None
        assert len(asked) == cap
    result, transport = await attempt(saver, store, len(whole.requests))
    asked += transport.requests
    assert result == unbroken
    assert Counter(asked) == Counter(whole.requests)


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
