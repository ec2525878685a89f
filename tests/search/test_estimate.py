"""The estimate of a run: its calls are exact where nothing is shared or asked again, and else a bound."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.data.order import order_queries
from drpo_graph.errors import BudgetSpentError
from drpo_graph.events.schema import Event, LevelFinished, Warned
from drpo_graph.graph import build_graph
from drpo_graph.models.request import Reply, Request
from drpo_graph.prompts import load_prompts
from drpo_graph.records import ROLES, Query, Usage
from drpo_graph.search.estimate import (
    REASONING_TOKENS,
    Dataset,
    estimate_remaining,
    estimate_run,
    find_shortage,
    tell_reasoning,
)
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.workload import Workload, plan_levels
from drpo_graph.settings.limits import Limits
from drpo_graph.settings.prices import Price
from drpo_graph.settings.settings import Settings
from tests.support.oracle import Oracle, OracleTransport, role_of
from tests.support.searches import SearchRun, fake_settings, oracle_context, run_search
from tests.support.world import World

PROMPTS = load_prompts()

CASES: dict[str, dict[str, Any]] = {
    "published": {"compat": "drpo", "depth": 4, "beam_size": 2, "n_actions": 3},
    "published-5x4": {"compat": "drpo", "depth": 3, "beam_size": 4, "n_actions": 5},
    "stream": {"depth": 4, "queries_per_level": 3, "query_policy": "stream", "beam_size": 3},
    "pool": {"depth": 5, "queries_per_level": 2, "pool_size": 4},
    "fixed": {"depth": 4, "queries_per_level": 3, "pool_size": 3, "keep_parents": True},
    "parents": {"depth": 4, "queries_per_level": 2, "keep_parents": True, "n_actions": 1},
    "few-queries": {"depth": 9, "queries_per_level": 4, "query_policy": "stream", "num_queries": 10},
    "one-parent": {"depth": 4, "beam_size": 1, "n_actions": 4},
}


def queries_of(texts: Any) -> list[Query]:
    return [Query(id=f"query-{number:03d}", text=text) for number, text in enumerate(texts, 1)]


def estimate(settings: Settings, world: World, *, num_validation: int = 0, is_worst: bool) -> dict[str, int]:
    training = order_queries(queries_of(world.train_queries), seed=settings.seed, num_queries=settings.num_queries)
    held_out = queries_of(world.heldout_queries)[:num_validation]
    found = estimate_run(settings, PROMPTS, Dataset(training, held_out), is_worst=is_worst)
    return {role: one.calls for role, one in found.by_role.items()}


async def search(settings: Settings, world: World, *, num_validation: int = 0) -> tuple[SearchRun, Counter[str]]:
    transport = OracleTransport(Oracle(world))
    held_out = world.heldout_queries[:num_validation]
    run = await run_search(settings, world, world.train_queries, validation=held_out, transport=transport)
    return run, Counter(role for role, _ in transport.requests)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_validation", [0, 3])
async def test_no_role_is_called_more_often_than_at_most(name: str, num_validation: int) -> None:
    for seed, missing_rate, easy_rate in ((1, 0.0, 0.0), (2, 0.3, 0.0), (3, 0.1, 0.4)):
        world = World(seed, missing_rate=missing_rate, easy_rate=easy_rate, num_queries=41, num_heldout=5)
        # Which samples are the last ones goes by time: that too many of them fail at once is not what is counted here.
        settings = fake_settings(**CASES[name], max_failure_share=1.0)
        _, called = await search(settings, world, num_validation=num_validation)
        most = estimate(settings, world, num_validation=num_validation, is_worst=True)
        assert all(called[role] <= most[role] for role in ROLES), (seed, called, most)


class StallingOracle(OracleTransport):
    """The synthetic world, whose critic says nothing usable of certain queries."""

    bad_texts: frozenset[str] = frozenset()

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply, or one that cannot be used."""
        reply = await super().send(request)
        said = "\n".join(one["content"] for one in request.messages)
        if role_of(request.messages) != "critic" or not any(text in said for text in self.bad_texts):
            return reply
        return replace(reply, choices=tuple(one.model_copy(update={"text": "no"}) for one in reply.choices))


@pytest.mark.parametrize(
    "case",
    [
        {"depth": 4, "queries_per_level": 2, "query_policy": "stream", "max_reply_attempts": 1, "beam_size": 1},
        {"depth": 4, "queries_per_level": 2, "query_policy": "stream", "keep_parents": True, "n_actions": 2},
    ],
    ids=["stream", "parents"],
)
async def test_levels_that_are_run_again_are_within_the_bound(case: dict[str, Any]) -> None:
    world = World(7, num_queries=60, num_heldout=5)
    settings = fake_settings(**{"max_depth_increase": 0, "skip_threshold": 5.0, "max_failure_share": 1.0, **case})
    ordered = order_queries(queries_of(world.train_queries), seed=settings.seed, num_queries=None)
    transport, size = StallingOracle(Oracle(world)), settings.queries_per_level
    # Nothing of the first round of each level can be used.
    transport.bad_texts = frozenset(one.text for place, one in enumerate(ordered) if (place // size) % 2 == 0)
    await run_search(settings, world, world.train_queries, transport=transport)
    called = Counter(role for role, _ in transport.requests)
    most = estimate(settings, world, is_worst=True)
    assert all(called[role] <= most[role] for role in ROLES), (called, most)
    rollouts = sum(level.rollouts for level in plan_levels(settings, num_queries=60, last=settings.num_levels))
    assert called["base"] > rollouts


def test_a_plan_that_follows_repetitions_goes_on_with_the_next_queries() -> None:
    settings = fake_settings(queries_per_level=4, query_policy="stream", beam_size=1, n_actions=2)
    plan = partial(plan_levels, settings, num_queries=18, first=2, last=8)
    assert plan() == [Workload(4, 1, 8), Workload(4, 1, 8), Workload(2, 1, 4)]
    assert plan(num_repeats=2) == [Workload(2, 1, 4)]


@pytest.mark.parametrize("name", CASES)
async def test_calls_are_exact_but_for_equal_prompts_where_no_level_is_easy(name: str) -> None:
    world = World(7, num_queries=41, num_heldout=5)
    settings = fake_settings(**{**CASES[name], "skip_threshold": 5.0, "max_depth_increase": 0})
    run, called = await search(settings, world)
    expected = estimate(settings, world, is_worst=False)
    assert called["metrics"] == expected["metrics"]
    assert called["base"] == called["critic"]
    assert all(called[role] <= expected[role] for role in ROLES)
    candidates = list((await run.archive.get_all("candidates")).values())
    if len({one["prompt"] for one in candidates}) == len(candidates):
        assert called == expected


async def test_at_least_one_case_has_no_equal_prompts() -> None:
    """The exact comparison above is not an empty one."""
    world, num_exact = World(7, num_queries=41, num_heldout=5), 0
    for case in CASES.values():
        settings = fake_settings(**{**case, "skip_threshold": 5.0, "max_depth_increase": 0})
        _, called = await search(settings, world)
        num_exact += called == estimate(settings, world, is_worst=False)
    assert num_exact >= 2


def test_a_kept_parent_on_the_queries_of_before_costs_nothing() -> None:
    fixed = fake_settings(queries_per_level=3, pool_size=3, keep_parents=True, n_actions=2)
    assert plan_levels(fixed, num_queries=9, last=2) == [Workload(3, 0, 3), Workload(0, 1, 6), Workload(0, 2, 12)]


def test_levels_end_with_the_queries() -> None:
    settings = fake_settings(queries_per_level=4, query_policy="stream", beam_size=1, n_actions=2)
    assert plan_levels(settings, num_queries=10, last=8) == [Workload(4, 0, 4), Workload(4, 1, 8), Workload(2, 1, 4)]


def test_cached_metrics_are_not_asked_for() -> None:
    settings = fake_settings(depth=3)
    training = queries_of(f"Question {number}?" for number in range(9))
    known = [query.text for query in training]
    found = estimate_run(settings, PROMPTS, Dataset(training, (), known), is_worst=False)
    assert found.by_role["metrics"].calls == 0


def test_money_is_tokens_times_price_and_unknown_without_one() -> None:
    price = Price(input=3, output=5)
    settings = fake_settings(depth=3)
    data = Dataset(queries_of(["One?", "Two?"]))
    assert estimate_run(settings, PROMPTS, data, is_worst=False).cost_usd is None
    priced = settings.model_copy(update={"prices": {"fake:world": price}})
    for one in estimate_run(priced, PROMPTS, data, is_worst=False).by_role.values():
        assert one.cost_usd == pytest.approx((one.prompt_tokens * 3 + one.completion_tokens * 5) / 10**6)


def test_reasoning_is_part_of_what_is_expected_and_of_the_limit_that_bounds_it() -> None:
    data = Dataset(queries_of(["One?", "Two?"]))
    plain = fake_settings(depth=3)
    thinking = plain.model_copy(update={"critic": plain.critic.model_copy(update={"reasoning_effort": "low"})})
    one, two = (estimate_run(each, PROMPTS, data, is_worst=False) for each in (plain, thinking))
    more = two.by_role["critic"].completion_tokens - one.by_role["critic"].completion_tokens
    assert more == REASONING_TOKENS * one.by_role["critic"].calls > 0
    # What was thought is shown to nobody.
    assert two.by_role["optimizer"] == one.by_role["optimizer"]
    assert estimate_run(plain, PROMPTS, data, is_worst=True) == estimate_run(thinking, PROMPTS, data, is_worst=True)
    assert tell_reasoning(plain, one) is None
    assert f"fake:world. Of their tokens out {REASONING_TOKENS} for each reply" in str(tell_reasoning(thinking, two))


@pytest.mark.parametrize("is_worst", [False, True])
def test_more_of_anything_is_never_estimated_as_less(is_worst: bool) -> None:
    data = Dataset(queries_of(f"Question {number}?" for number in range(60)))

    def total(**changes: Any) -> tuple[int, int, float]:
        found = estimate_run(fake_settings(**{"depth": 4, **changes}), PROMPTS, data, is_worst=is_worst)
        return found.calls, found.tokens, found.seconds

    base = total()
    more = ({"depth": 6}, {"beam_size": 4}, {"n_actions": 4}, {"queries_per_level": 5}, {"max_concurrency": 1})
    for changes in more:
        assert all(one >= two for one, two in zip(total(**changes), base, strict=True)), changes
    assert total(requests_per_second=0.1)[2] > base[2]


def test_the_worst_case_is_never_below_the_expected_one() -> None:
    data = Dataset(queries_of(["Short?", "A much longer question than the other one?"]), queries_of(["Held out?"]))
    for case in CASES.values():
        settings = fake_settings(**{**case, "num_queries": None})
        expected, worst = (estimate_run(settings, PROMPTS, data, is_worst=one) for one in (False, True))
        for role in ROLES:
            for field in ("calls", "prompt_tokens", "completion_tokens"):
                assert getattr(worst.by_role[role], field) >= getattr(expected.by_role[role], field), (role, field)
        assert worst.seconds >= expected.seconds


def test_what_is_left_goes_by_what_calls_have_been() -> None:
    settings = fake_settings()
    used = {
        "base": Usage(calls=10, prompt_tokens=1000, completion_tokens=100),
        "critic": Usage(calls=20, prompt_tokens=2000, completion_tokens=400),
    }
    # Every critique had to be asked for twice; no metrics model was ever asked.
    left = estimate_remaining(
        [Workload(2, 0, 5)], settings, done=[Workload(4, 0, 10)], used=used, prompts=PROMPTS
    ).by_role
    assert (left["base"].calls, left["base"].prompt_tokens, left["base"].completion_tokens) == (5, 500, 50)
    assert (left["critic"].calls, left["critic"].prompt_tokens, left["critic"].completion_tokens) == (10, 1000, 200)
    assert (left["metrics"].calls, left["optimizer"].calls) == (0, 0)


def test_a_shortage_names_each_cap_with_both_numbers() -> None:
    limits = Limits(max_calls=100, max_tokens=10**9, max_cost=0.5)
    line = find_shortage(limits, {"max_calls": 1234, "max_tokens": 10**6, "max_cost": 2.0, "max_time": 9e9})
    assert line == (
        "this run will need about 1,234 calls, and --max-calls is 100 calls; about $2.00, and --max-cost is $0.50"
    )
    assert find_shortage(limits, {"max_calls": 100, "max_cost": None}) is None


class Clock:
    """Moves a step each time a call is made."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        return self.now

    def tick(self, _: object) -> None:
        self.now += self.step_s


async def run_events(*, step_s: float = 0.0, **values: Any) -> list[Event]:
    """Return the events of a search, which its budget may end."""
    world, events, clock = World(3), list[Event](), Clock(step_s)
    settings = fake_settings(depth=4, **values)
    transport = OracleTransport(Oracle(world), before=clock.tick)
    context = oracle_context(settings, transport, store=InMemoryStore(), sinks=(events.append,))
    with suppress(BudgetSpentError):
        await build_graph(settings).ainvoke(
            {"queries": list(world.train_queries)},
            {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT},
            context=replace(context, clock=clock),  # type: ignore[arg-type]
        )
    return events


async def test_what_is_left_falls_to_nothing_and_is_never_far_off() -> None:
    events = await run_events(skip_threshold=5.0, max_depth_increase=0)
    levels = [event for event in events if isinstance(event, LevelFinished)]
    total = levels[-1].usage.calls
    left = [level.remaining.calls for level in levels if level.remaining is not None]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    for level, calls in zip(levels[1:], left[1:], strict=True):
        # A call for each of the next level's queries was made ahead.
        assert abs(level.usage.calls + calls - total) <= 0.2 * total


def warnings_of(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


async def test_a_budget_that_may_not_last_is_told_at_the_start() -> None:
    assert warnings_of(await run_events()) == []
    # The world's replies are shorter than usual ones: it does last.
    (told,) = warnings_of(await run_events(max_tokens=20_000))
    assert "--max-tokens is 20,000 tokens (by lengths that are usual)" in told


async def test_a_budget_that_will_not_last_is_told_once_more_when_it_is_clear() -> None:
    events = await run_events(max_calls=40)
    told = warnings_of(events)
    assert [one.rpartition("(")[2] for one in told] == ["by lengths that are usual)", "by what it has used so far)"]
    assert all("--max-calls is 40 calls" in one for one in told)
    levels = [event.level for event in events if isinstance(event, LevelFinished)]
    assert levels[-1] > 1


async def test_a_time_that_will_not_do_is_told_when_the_pace_is_known() -> None:
    told = warnings_of(await run_events(max_time=40, step_s=1.0))
    assert len(told) == 1
    assert "--max-time is 40 s (by what it has used so far)" in told[0]
