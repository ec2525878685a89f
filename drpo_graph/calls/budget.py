"""One budget per run over all roles: reserved before a call is sent, settled with what it really used.

A reservation is what a call may use at most. So what is spent and what is reserved together never pass a cap, and a
call that does not fit waits while others are in flight: they will use less than they reserved. It ends the run only
when nothing is in flight any more.

What is spent is, over all processes of a run:

- every call in the ledger, with the usage that its server told; a replayed call costs nothing again;
- what a process that was killed had in flight, as it was reserved: the server may have billed it;
- requests that timed out, were cut off or came back broken, as they were reserved. Requests that the server answered
  with an error, and those that did not reach it, count nothing.

What is in flight is stored by ledger key before it is sent, so that no kill has a call counted twice or not at all.
Without a cap it is stored once a second, for one that a resumed run may be given.

The capability probe is not counted: a dozen tiny requests, once a day.
"""

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field

from drpo_graph.errors import BudgetSpentError
from drpo_graph.models.context_window import most_tokens
from drpo_graph.models.endpoint_gate import wait_out
from drpo_graph.models.failures import classify_failure
from drpo_graph.models.outages import Guard
from drpo_graph.models.request import Request
from drpo_graph.records import Record, Usage
from drpo_graph.settings.limits import Amount, Cap, Limits, flag_of, tell_amount
from drpo_graph.settings.prices import PriceBook, to_dollars
from drpo_graph.storage.archive import Archive

Clock = Callable[[], float]

_BILLED_KINDS = frozenset({"timeout", "malformed", "http_504"})
"""Failures after which the server may have done its work, and billed it."""
_SAVE_EVERY_S = 1.0


class Demand(NamedTuple):
    """A request of a call, and what decides how much it may use."""

    key: str
    """The call's, in the ledger."""
    model: str
    max_prompt: int
    """Tokens of the prompt, at most."""
    max_completion: int
    """Tokens of all samples together."""


def demand_of(key: str, request: Request, *, model: str) -> Demand:
    """Return what decides how much of the budget a request of a call may use."""
    texts = [one["content"] for one in request.messages]
    if request.schema is not None and request.mode in ("json_schema", "tool"):
        # Servers put the schema into the prompt.
        texts.append(json.dumps(request.schema.schema))
    return Demand(key, model, most_tokens(texts), max_completion=request.max_tokens * request.num_samples)


class UnsavedBudgetError(Exception):
    """The store failed before a request was sent: no failure of the request. Never reaches a node."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class BudgetPart(Record):
    """What one process spent beyond the calls in the ledger, as the archive keeps it."""

    elapsed_s: float = 0.0
    charged: Amount = Amount()
    """Requests without a usable reply that may have been billed, and use that no server told."""
    in_work: dict[str, Amount] = Field(default_factory=dict)
    """By ledger key, calls that were sent and not in the ledger when this was written: what each had reserved, or used.
    Of a process that has gone, those that never got there are lost."""

    def write_off(self, finished: Mapping[str, Usage]) -> "BudgetPart":
        """Return the part of a process that has gone: what it lost is charged, and nothing is in work."""
        charged = self.charged
        for key, amount in self.in_work.items():
            usage = finished.get(key)
            if usage is None:
                charged = charged.plus(amount)
            elif _is_untold(usage):
                charged = charged.plus(amount._replace(calls=0))
        return self.model_copy(update={"charged": charged, "in_work": {}})


@dataclass(slots=True)
class Hold:
    """A reservation; :meth:`settle` it with the reply's usage."""

    key: str
    amount: Amount
    usage: Usage | None = None

    def settle(self, usage: Usage) -> None:
        """Take what the call really used."""
        self.usage = usage


class Budget:
    """A run's budget in one process. Bound to one event loop; :meth:`load` comes first."""

    def __init__(self, limits: Limits | None = None, *, clock: Clock = time.monotonic) -> None:
        self.limits = limits or Limits()
        self.prices = PriceBook(self.limits.prices)
        self.spent = Amount()
        """By all processes, this one included."""
        self.reserved = Amount()
        self.num_in_flight = 0
        self.has_warned = False
        """Whether it was told that the budget will not last."""
        self._clock = clock
        self._started_at = clock()
        self._former_s = 0.0
        self._charged = Amount()
        self._in_work: dict[str, Amount] = {}
        self._waiters: deque[asyncio.Event] = deque()
        self._archive: Archive | None = None
        self.num_former = 0
        """Processes that have worked on the run and stored what they spent."""
        self._part = "000001"
        self._written_off: dict[str, BudgetPart] = {}
        self._saving = asyncio.Lock()
        self._saved_at = self._started_at
        self._num_saves_asked = 0
        self._num_saves_done = 0

    async def load(self, archive: Archive, finished: Mapping[str, Usage] | None = None) -> None:
        """Read what former processes spent beyond the calls in their ledger."""
        self._archive = archive
        stored = await archive.records("budget", BudgetPart)
        for name, part in stored.items():
            if part.in_work:
                # To be stored so before this process makes one of these calls again, and has it in the ledger.
                part = self._written_off[name] = part.write_off(finished or {})
            self._former_s += part.elapsed_s
            self.spent = self.spent.plus(part.charged)
        self.num_former = len(stored)
        self._part = f"{len(stored) + 1:06d}"

    def count(self, model: str, usage: Usage) -> None:
        """Add a call that was paid for before."""
        self.spent = self.spent.plus(self._amount_of(model, usage))

    @property
    def former_s(self) -> float:
        """Seconds that former processes have worked on the run."""
        return self._former_s

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run's processes have worked on it, this one included."""
        return self._former_s + self._clock() - self._started_at

    @property
    def remaining_s(self) -> float:
        """Seconds that the run may still work."""
        limit = self.limits.max_time
        return math.inf if limit is None else max(0.0, limit - self.elapsed_s)

    def check_time(self) -> None:
        """Do nothing while the run may work on.

        Raises:
            BudgetSpentError: its time is up.
        """
        limit = self.limits.max_time
        if limit is not None and self.elapsed_s >= limit:
            raise self._spent("max_time", limit, what="The time is up")

    def spent_of(self, cap: Cap) -> float:
        """Return what is spent of what a cap bounds, in its own unit."""
        return self.elapsed_s if cap == "max_time" else _in_unit(cap, self.spent)

    @asynccontextmanager
    async def hold(self, demand: Demand, guard: Guard = wait_out) -> AsyncIterator[Hold]:
        """Reserve what a request may use while it is in flight; in the end count what it used.

        Args:
            demand: The request.
            guard: Awaits the turn; what it raises gives the turn up.

        Raises:
            BudgetSpentError: it does not fit, and nothing in flight can make room.
        """
        hold = await self._reserve(demand, guard)
        try:
            if self.limits.is_bounded or self._written_off or self._clock() - self._saved_at >= _SAVE_EVERY_S:
                # Stored before anything is sent: what a kill leaves in flight is counted by the next process.
                await self.save()
        except BaseException as error:
            self._release(hold, charged=Amount())
            if isinstance(error, Exception):
                raise UnsavedBudgetError(error) from error
            raise
        try:
            yield hold
        except BaseException as error:
            self._release(hold, charged=hold.amount if _may_be_billed(error) else Amount())
            raise
        self._settle(hold, demand)

    def commit(self, key: str) -> None:
        """Take note that a call is in the ledger."""
        self._in_work.pop(key, None)

    async def save(self) -> None:
        """Store what this process spent beyond its ledger; those who wait for their turn share one write."""
        if self._archive is None:
            return
        self._num_saves_asked += 1
        number = self._num_saves_asked
        async with self._saving:
            if self._num_saves_done >= number:
                return
            covered, written_off = self._num_saves_asked, self._written_off
            self._saved_at = self._clock()
            part = BudgetPart(
                elapsed_s=round(self._saved_at - self._started_at, 3), charged=self._charged, in_work=self._in_work
            )
            parts = {**written_off, self._part: part}
            await self._archive.put_all("budget", {name: one.model_dump(mode="json") for name, one in parts.items()})
            self._num_saves_done, self._written_off = covered, {}

    async def _reserve(self, demand: Demand, guard: Guard) -> Hold:
        turn, amount = asyncio.Event(), self._most(demand)
        self._waiters.append(turn)
        try:
            while True:
                self.check_time()
                exceeded = self.limits.find_exceeded(self.spent.plus(self.reserved).plus(amount))
                if self._waiters[0] is turn:
                    if exceeded is None:
                        return self._take(demand.key, amount)
                    if not self.num_in_flight:
                        raise self._spent(exceeded, _in_unit(exceeded, amount))
                turn.clear()
                await guard(turn.wait())
        finally:
            self._waiters.remove(turn)
            self._wake()

    def _take(self, key: str, amount: Amount) -> Hold:
        # Of a call whose reply could not be stored: made again, it is billed again.
        self._charged = self._charged.plus(self._in_work.pop(key, Amount()))
        self._in_work[key] = amount
        self.reserved = self.reserved.plus(amount)
        self.num_in_flight += 1
        return Hold(key, amount)

    def _wake(self) -> None:
        # In order of arrival: a large call is not passed by small ones for ever.
        if self._waiters:
            self._waiters[0].set()

    def _release(self, hold: Hold, *, charged: Amount, used: Amount | None = None) -> None:
        """Give a reservation back; what was used is in work until it is in the ledger."""
        if used is None:
            del self._in_work[hold.key]
        else:
            self._in_work[hold.key] = used
            self.spent = self.spent.plus(used)
        self.reserved = self.reserved.minus(hold.amount)
        self.num_in_flight -= 1
        self._charged = self._charged.plus(charged)
        self.spent = self.spent.plus(charged)
        self._wake()

    def _settle(self, hold: Hold, demand: Demand) -> None:
        usage = hold.usage
        assert usage is not None, "a hold that ends well is settled"
        # A server that does not tell what a call used is taken to have used all that it might.
        charged = hold.amount._replace(calls=0) if _is_untold(usage) else Amount()
        self._release(hold, charged=charged, used=self._amount_of(demand.model, usage))

    def _most(self, demand: Demand) -> Amount:
        """Return what a request may use at most."""
        usage = Usage(calls=1, prompt_tokens=demand.max_prompt, completion_tokens=demand.max_completion)
        return self._amount_of(demand.model, usage)

    def _amount_of(self, model: str, usage: Usage) -> Amount:
        num_tokens = usage.prompt_tokens + usage.completion_tokens
        return Amount(usage.calls, num_tokens, self.prices.cost_of(model, usage) or 0)

    def _spent(self, cap: Cap, needs: float, *, what: str = "The budget is spent") -> BudgetSpentError:
        limit = getattr(self.limits, cap)
        spent = self.spent_of(cap)
        share = tell_amount(cap, spent, limit=limit)
        message = f"{what}: {share} ({flag_of(cap)})."
        if spent < limit:
            rest = "What is left of the budget is too little for the next call"
            message = f"{rest}: {share} spent ({flag_of(cap)}), it may need {tell_amount(cap, needs)}."
        # Twice as much, or what the next call needs where that is more.
        enough = max(2 * limit, spent + needs)
        larger = f"{math.ceil(enough * 100) / 100:g}" if cap == "max_cost" else str(math.ceil(enough))
        return BudgetSpentError(message, resume_flags=f"{flag_of(cap)} {larger}")


def _in_unit(cap: Cap, amount: Amount) -> float:
    """Return how much of what a cap bounds an amount is, in the cap's own unit."""
    return {"max_calls": amount.calls, "max_tokens": amount.tokens}.get(cap, to_dollars(amount.picodollars))


def _may_be_billed(error: BaseException) -> bool:
    """Return whether the server may have done a failed request's work."""
    if not isinstance(error, Exception):
        return True
    failure = classify_failure(error)
    if failure is None:
        return False
    return failure.kind in _BILLED_KINDS or (failure.kind == "connection" and not failure.is_unreached)


def _is_untold(usage: Usage) -> bool:
    return not usage.prompt_tokens and not usage.completion_tokens
