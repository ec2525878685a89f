"""The budget in front of a server: no cap is passed, and only what may have been billed counts."""

import asyncio
import errno
from collections.abc import Iterable
from typing import Any

import pytest
from langgraph.store.base import Op, Result
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import BudgetSpentError, RunInterruptedError
from drpo_graph.events.schema import CallFinished, EndpointLost
from drpo_graph.settings.limits import Amount
from tests.support.fake_server import FaultPlan, Latency, Reply, ServerOptions
from tests.support.roles import Desk, answer, by_content, failing, parse_answer, script, serve
from tests.support.spending import PRICES

ANSWER = by_content({}, answer(4))
MAX_REPLY = 200
LONG = f'{{"score": 4, "why": "{" ".join(["word"] * (MAX_REPLY - 10))}"}}'
"""Nearly as long as a reply may be."""


class FullStore(InMemoryStore):
    """A store that has no room for the budget when it is told so."""

    is_full = False

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations, or fail."""
        given = list(ops)
        if self.is_full and any(getattr(op, "namespace", ("",))[-1] == "budget" for op in given):
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().abatch(given)


async def ask(desk: Desk, number: int) -> None:
    question = [{"role": "user", "content": f"Question {number}?"}]
    await desk.models.critic.ask(question, parse=parse_answer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caps", "num_expected"),
    [
        ({"max_calls": 20}, range(20, 21)),
        ({"max_calls": 1}, range(1, 2)),
        # Ten of the largest calls: at most 300 tokens and 0.5 dollars each, of which they use about 200 and 0.4.
        ({"max_tokens": 3000}, range(10, 16)),
        ({"max_cost": 5.0, "prices": PRICES}, range(10, 14)),
    ],
    ids=["calls", "one", "tokens", "money"],
)
async def test_64_calls_at_once_never_pass_a_cap(caps: dict[str, Any], num_expected: range) -> None:
    desks: list[Desk] = []

    def respond(_: dict[str, object]) -> Reply:
        budget = desks[0].ledger.budget
        assert budget.limits.find_exceeded(budget.spent.plus(budget.reserved)) is None
        return Reply([LONG])

    options, role = ServerOptions(latency=Latency(0.01, 0.5)), {"max_tokens": MAX_REPLY}
    async with serve(respond, options, max_concurrency=64, max_reply_attempts=1, role=role, **caps) as (server, desk):
        desks.append(desk)
        ended = await asyncio.gather(*(ask(desk, number) for number in range(64)), return_exceptions=True)
        num_done = sum(one is None for one in ended)
        assert {type(one) for one in ended if one is not None} == {BudgetSpentError}
        assert num_done in num_expected
        used, budget = desk.ledger.total_usage(), desk.ledger.budget
        assert used.calls == num_done == len(server.finished) == len(server.log) / 2 == budget.spent.calls
        assert used.prompt_tokens + used.completion_tokens == budget.spent.tokens
        assert budget.limits.find_exceeded(budget.spent) is None
        assert budget.reserved == Amount()
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


async def test_a_connection_that_is_cut_counts_as_reserved_and_is_no_lost_server() -> None:
    faults = FaultPlan(1.0, kinds=("reset",), max_per_request=1)
    async with serve(ANSWER, ServerOptions(faults=faults), max_calls=5, retry_wait_s=0.01) as (server, desk):
        await ask(desk, 1)
        assert [retry.kind for retry in desk.retries] == ["connection"]
        assert desk.ledger.budget.spent.calls == sum(entry["event"] == "start" for entry in server.log) == 2
        # One of them opens no circuit: it says nothing of the server.
        assert not any(isinstance(event, EndpointLost) for event in desk.events)


async def test_a_store_that_fails_before_a_call_is_no_failure_of_the_call() -> None:
    store = FullStore()
    async with serve(ANSWER, store=store, max_calls=5) as (server, desk):
        store.is_full = True
        with pytest.raises(OSError, match="No space left"):
            await ask(desk, 1)
        assert (server.log, desk.retries) == ([], [])
        assert desk.ledger.budget.reserved == desk.ledger.budget.spent == Amount()


async def test_what_cannot_be_stored_at_the_end_hides_nothing() -> None:
    store = FullStore()
    async with serve(ANSWER, store=store, max_calls=5) as (_, desk):
        await ask(desk, 1)
        store.is_full = True
        await desk.ledger.drain()


@pytest.mark.parametrize("wait", ["server", "rate"])
async def test_a_wait_ends_when_the_time_is_up(wait: str) -> None:
    later = script(failing(429, headers={"Retry-After": "3600"}), answer(4)) if wait == "server" else ANSWER
    pace = 0.001 if wait == "rate" else None
    async with serve(later, max_time=0.5, max_outage_s=7200, requests_per_second=pace) as (_, desk):
        async with asyncio.timeout(60):
            with pytest.raises(RunInterruptedError) as caught:
                await asyncio.gather(*(ask(desk, number) for number in range(2)))
        assert isinstance(caught.value.__cause__ or caught.value, BudgetSpentError)


async def test_the_samples_of_one_request_are_one_call_with_the_request_s_usage() -> None:
    async with serve(script(answer(1, 2, 3)), max_calls=1) as (_, desk):
        question = [{"role": "user", "content": "How good?"}]
        samples = await desk.models.critic.ask(question, parse=parse_answer, num_samples=3)  # type: ignore[arg-type]
        assert [sample.value for sample in samples] == [1, 2, 3]
        (event,) = [one for one in desk.events if isinstance(one, CallFinished)]
        assert desk.ledger.budget.spent == Amount(1, event.usage.prompt_tokens + event.usage.completion_tokens, 0)
