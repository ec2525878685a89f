"""The budget's arithmetic: reserved before a call, settled with what it used, charged where it may have been billed."""

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from drpo_graph.calls.budget import Budget, Demand, demand_of
from drpo_graph.errors import BudgetSpentError
from drpo_graph.models.context_window import MESSAGE_TOKENS, TEMPLATE_TOKENS
from drpo_graph.models.failures import MalformedReplyError
from drpo_graph.models.request import ReplySchema, Request
from drpo_graph.prompts.library import Message
from drpo_graph.settings.limits import Amount, Limits, parse_duration
from drpo_graph.settings.prices import Price
from tests.support.spending import MODEL, PRICES, Clock, demand, spend, usage


class StatusError(Exception):
    """An HTTP error of some client."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


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


async def test_what_a_model_counted_before_says_nothing_of_the_next_prompt() -> None:
    budget = Budget(Limits(max_tokens=10_000))
    # A long English prompt, six bytes a token; then a short one, most of which is the chat template.
    await spend(budget, demand(6096, 10), usage(1000, 1))
    async with budget.hold(demand(60 + 96, 10)) as hold:
        assert budget.reserved.tokens == 60 + 96 + 10
        hold.settle(usage(60, 10))


async def test_dense_prompts_after_sparse_ones_do_not_pass_a_cap() -> None:
    budget = Budget(Limits(max_tokens=20_000))
    await spend(budget, demand(4096, 50), usage(1000, 10))

    async def ask_dense() -> None:
        async with budget.hold(demand(3096, 10)) as hold:
            await asyncio.sleep(0)
            hold.settle(usage(2000, 10))

    ended = await asyncio.gather(*(ask_dense() for _ in range(64)), return_exceptions=True)
    assert ended.count(None) == 8
    assert budget.spent.tokens == 1010 + 8 * 2010 <= 20_000


async def test_a_server_that_tells_no_usage_is_taken_to_have_used_all_it_might() -> None:
    budget = Budget(Limits(max_tokens=10_000))
    await spend(budget, demand(30, 70), usage())
    assert budget.spent == Amount(1, 100, 0)


async def test_the_time_that_is_proposed_lasts_beyond_what_is_spent() -> None:
    clock = Clock()
    budget = Budget(Limits(max_time=10), clock=clock)
    clock.now += 35.2
    with pytest.raises(BudgetSpentError) as caught:
        await spend(budget, demand(), usage(1, 1))
    assert caught.value.resume_flags == "--max-time 46"


@pytest.mark.parametrize(
    ("error", "is_counted"),
    [
        (TimeoutError(), True),
        (MalformedReplyError("a page"), True),
        (ConnectionResetError(104, "reset"), True),
        (BrokenPipeError(32, "pipe"), True),
        (StatusError(504), True),
        (asyncio.CancelledError(), True),
        (ConnectionRefusedError(111, "refused"), False),
        (StatusError(503), False),
        (StatusError(429), False),
        (StatusError(400), False),
        (ValueError("a bug"), False),
    ],
    ids=repr,
)
async def test_a_request_without_a_reply_counts_as_reserved_where_it_may_have_been_billed(
    error: BaseException, is_counted: bool
) -> None:
    budget = Budget(Limits(max_tokens=1000))
    with pytest.raises(type(error)):
        async with budget.hold(demand(0, 300)):
            raise error
    assert budget.spent == (Amount(1, 300, 0) if is_counted else Amount())
    assert budget.reserved == Amount()


def test_a_request_s_demand_is_its_bytes_its_samples_and_what_a_template_may_add() -> None:
    messages: Sequence[Message] = ({"role": "system", "content": "Réponds."}, {"role": "user", "content": "Why?"})
    plain = demand_of("key", Request(messages, num_samples=3, max_tokens=50), model=MODEL)
    assert plain == Demand("key", MODEL, 9 + 4 + TEMPLATE_TOKENS + 2 * MESSAGE_TOKENS, 150)
    schema = ReplySchema("score", {"type": "object"})
    in_prompt = 18 + MESSAGE_TOKENS
    for mode, num_more in (("json_schema", in_prompt), ("tool", in_prompt), ("json", 0), ("text", 0)):
        asked = demand_of("key", Request(messages, max_tokens=50, mode=mode, schema=schema), model=MODEL)
        assert asked.max_prompt == plain.max_prompt + num_more, mode


class PlannedCall(NamedTuple):
    """A call of the property test."""

    max_prompt: int
    max_completion: int
    share: float
    """Of its demand, what it uses."""
    end: str


planned_calls = st.builds(
    PlannedCall,
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1),
    st.sampled_from(["ok", "ok", "timeout", "refused"]),
)


async def carry_out(budget: Budget, call: PlannedCall, draw: random.Random) -> str:
    """Make a call, check the budget at every step, and return how it ended."""

    def check() -> None:
        assert min(*budget.spent, *budget.reserved, budget.num_in_flight) >= 0
        assert budget.limits.find_exceeded(budget.spent.plus(budget.reserved)) is None

    try:
        async with budget.hold(demand(call.max_prompt, call.max_completion)) as hold:
            check()
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            check()
            if call.end == "timeout":
                raise TimeoutError
            if call.end == "refused":
                raise ConnectionRefusedError
            hold.settle(usage(int(call.share * call.max_prompt), int(call.share * call.max_completion)))
    except BudgetSpentError:
        assert budget.num_in_flight == 0
        return "spent"
    except (TimeoutError, ConnectionRefusedError):
        return "failed"
    finally:
        check()
    return "ok"


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(planned_calls, max_size=40),
    max_calls=st.none() | st.integers(1, 30),
    max_tokens=st.none() | st.integers(1, 800),
    max_cost=st.none() | st.floats(0.001, 1.0),
    seed=st.integers(0, 10**6),
)
def test_spent_and_reserved_never_pass_a_cap_and_every_waiter_ends(
    calls: list[PlannedCall], max_calls: int | None, max_tokens: int | None, max_cost: float | None, seed: int
) -> None:
    limits = Limits.model_validate(
        {"max_calls": max_calls, "max_tokens": max_tokens, "max_cost": max_cost, "prices": PRICES}
    )
    budget, draw = Budget(limits), random.Random(seed)

    async def run() -> list[str]:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(carry_out(budget, one, draw) for one in calls))

    ended = asyncio.run(run())
    assert len(ended) == len(calls)
    assert budget.reserved == Amount()
    if max_calls is None and max_tokens is None and max_cost is None:
        assert "spent" not in ended


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
