"""One budget per run over all roles: reserved before a call is sent, settled with what it really used.

A reservation is what a call may use at most. So what is spent and what is reserved together never pass a cap, and a
call that does not fit waits while others are in flight: they will use less than they reserved. It ends the run only
when nothing is in flight any more.

What is spent is, over all processes of a run:

- every call in the ledger, with the usage that its server told; a replayed call costs nothing again;
- what was in flight when a process was killed, as it was reserved: the server may have billed it;
- requests that timed out or came back broken, as they were reserved. Requests that the server answered with an error,
  and those that did not reach it, count nothing.

The capability probe is not counted: a dozen tiny requests, once a day.
"""

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from pydantic import Field

from drpo_graph.archive import Archive
from drpo_graph.context_window import MESSAGE_TOKENS, TEMPLATE_TOKENS
from drpo_graph.errors import BudgetSpentError
from drpo_graph.exchange import Request
from drpo_graph.failures import classify_failure
from drpo_graph.limits import Amount, Cap, Limits, flag_of, tell_amount
from drpo_graph.prices import PICODOLLARS, PriceBook, to_dollars
from drpo_graph.records import Record, Usage
from drpo_graph.scheduler import Guard, wait_out

Clock = Callable[[], float]

_MARGIN = 1.25
"""On the most prompt tokens per byte that a model was seen to count."""
_BILLED_KINDS = frozenset({"timeout", "malformed", "http_504"})
"""Failures after which the server may have done its work, and billed it."""
_SAVE_EVERY_S = 1.0


class Demand(NamedTuple):
    """What decides how much a request may use."""

    model: str
    num_bytes: int
    """Of the prompt. No tokenizer in use makes more tokens of a text than it has bytes."""
    max_completion: int
    """Tokens of all samples together."""
    extra_tokens: int = 0
    """What a chat template may add."""


def demand_of(request: Request, model: str) -> Demand:
    """Return what decides how much of the budget a request may use."""
    texts = [one["content"] for one in request.messages]
    if request.schema is not None and request.mode in ("json_schema", "tool"):
        # Servers put the schema into the prompt.
        texts.append(json.dumps(request.schema.schema))
    return Demand(
        model=model,
        num_bytes=sum(len(text.encode("utf-8", "replace")) for text in texts),
        max_completion=request.max_tokens * request.num_samples,
        extra_tokens=TEMPLATE_TOKENS + MESSAGE_TOKENS * len(texts),
    )


class BudgetPart(Record):
    """What one process spent beyond the calls in the ledger, as the archive keeps it."""

    elapsed_s: float = 0.0
    charged: tuple[int, int, int] = Amount()
    """Requests without a usable reply that may have been billed, and use that no server told."""
    reserved: tuple[int, int, int] = Amount()
    """In flight when this was written; of a process that has gone, lost."""
    tokens_per_byte: dict[str, float] = Field(default_factory=dict)
    """The most prompt tokens per byte that each model counted."""


class Hold:
    """A reservation; :meth:`settle` it with the reply's usage."""

    def __init__(self, amount: Amount) -> None:
        self.amount = amount
        self.usage: Usage | None = None

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
        self._tokens_per_byte: dict[str, float] = {}
        self._waiters: deque[asyncio.Event] = deque()
        self._archive: Archive | None = None
        self._part = "000001"
        self._saving = asyncio.Lock()
        self._saved_at = self._started_at

    async def load(self, archive: Archive) -> None:
        """Read what former processes spent beyond the calls in their ledger."""
        self._archive = archive
        stored = await archive.get_all("budget")
        for value in stored.values():
            part = BudgetPart.model_validate(value)
            self._former_s += part.elapsed_s
            self.spent = self.spent.plus(Amount(*part.charged)).plus(Amount(*part.reserved))
            for model, ratio in part.tokens_per_byte.items():
                self._tokens_per_byte[model] = max(ratio, self._tokens_per_byte.get(model, 0.0))
        self._part = f"{len(stored) + 1:06d}"

    def count(self, model: str, usage: Usage) -> None:
        """Add a call that was paid for before."""
        self.spent = self.spent.plus(self._amount_of(model, usage))

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run's processes have worked on it, this one included."""
        return self._former_s + self._clock() - self._started_at

    def spent_of(self, cap: Cap) -> float:
        """Return what is spent of what a cap bounds, in its own unit."""
        return {
            "max_calls": self.spent.calls,
            "max_tokens": self.spent.tokens,
            "max_cost": to_dollars(self.spent.picodollars),
            "max_time": self.elapsed_s,
        }[cap]

    @asynccontextmanager
    async def hold(self, demand: Demand, guard: Guard = wait_out) -> AsyncIterator[Hold]:
        """Reserve what a request may use while it is in flight; in the end count what it used.

        Args:
            demand: The request.
            guard: Awaits the turn; what it raises gives the turn up.

        Raises:
            BudgetSpentError: it does not fit, and nothing in flight can make room.
        """
        hold = Hold(await self._reserve(demand, guard))
        try:
            if self.limits.is_bounded or self._clock() - self._saved_at >= _SAVE_EVERY_S:
                # Stored before anything is sent: what a kill leaves in flight is counted by the next process. Not when
                # a call ends: it is to be in the ledger before it is no longer reserved.
                await self.save()
            yield hold
        except BaseException as error:
            failure = classify_failure(error) if isinstance(error, Exception) else None
            is_billed = not isinstance(error, Exception) or (failure is not None and failure.kind in _BILLED_KINDS)
            self._release(hold, charged=hold.amount if is_billed else Amount())
            raise
        self._settle(hold, demand)

    async def save(self) -> None:
        """Store what this process spent beyond its ledger."""
        if self._archive is None:
            return
        async with self._saving:
            self._saved_at = self._clock()
            part = BudgetPart(
                elapsed_s=round(self._saved_at - self._started_at, 3),
                charged=self._charged,
                reserved=self.reserved,
                tokens_per_byte=self._tokens_per_byte,
            )
            await self._archive.put("budget", self._part, part.model_dump(mode="json"))

    async def _reserve(self, demand: Demand, guard: Guard) -> Amount:
        turn = asyncio.Event()
        self._waiters.append(turn)
        try:
            while True:
                self._check_time()
                # Looked at again at each turn: what came back meanwhile may have shown that prompts are shorter.
                amount = self._most(demand)
                exceeded = self.limits.find_exceeded(self.spent.plus(self.reserved).plus(amount))
                if self._waiters[0] is turn:
                    if exceeded is None:
                        self.reserved = self.reserved.plus(amount)
                        self.num_in_flight += 1
                        return amount
                    if not self.num_in_flight:
                        raise self._spent(exceeded, amount)
                turn.clear()
                await guard(_wait_for(turn))
        finally:
            self._waiters.remove(turn)
            self._wake()

    def _wake(self) -> None:
        # In order of arrival: a large call is not passed by small ones for ever.
        if self._waiters:
            self._waiters[0].set()

    def _release(self, hold: Hold, *, charged: Amount) -> None:
        self.reserved = self.reserved.minus(hold.amount)
        self.num_in_flight -= 1
        self._charged = self._charged.plus(charged)
        self.spent = self.spent.plus(charged)
        self._wake()

    def _settle(self, hold: Hold, demand: Demand) -> None:
        usage = hold.usage
        assert usage is not None, "a hold that ends well is settled"
        used = self._amount_of(demand.model, usage)
        if usage.prompt_tokens and demand.num_bytes:
            ratio = usage.prompt_tokens / demand.num_bytes
            self._tokens_per_byte[demand.model] = max(ratio, self._tokens_per_byte.get(demand.model, 0.0))
        self.spent = self.spent.plus(used)
        # A server that does not tell what a call used is taken to have used all that it might.
        is_untold = not usage.prompt_tokens and not usage.completion_tokens
        self._release(hold, charged=hold.amount._replace(calls=0) if is_untold else Amount())

    def _most(self, demand: Demand) -> Amount:
        """Return what a request may use at most."""
        if not self.limits.is_bounded:
            return Amount()
        ratio = self._tokens_per_byte.get(demand.model)
        num_prompt = demand.num_bytes + demand.extra_tokens
        if ratio is not None:
            num_prompt = min(num_prompt, math.ceil(ratio * _MARGIN * demand.num_bytes))
        usage = Usage(calls=1, prompt_tokens=num_prompt, completion_tokens=demand.max_completion)
        return self._amount_of(demand.model, usage)

    def _amount_of(self, model: str, usage: Usage) -> Amount:
        num_tokens = usage.prompt_tokens + usage.completion_tokens
        return Amount(usage.calls, num_tokens, self.prices.cost_of(model, usage) or 0)

    def _check_time(self) -> None:
        limit = self.limits.max_time
        if limit is not None and self.elapsed_s >= limit:
            raise BudgetSpentError(
                f"The time is up: {tell_amount('max_time', self.elapsed_s, limit=limit)} ({flag_of('max_time')}).",
                resume_flags=f"{flag_of('max_time')} {math.ceil(2 * limit)}",
            )

    def _spent(self, cap: Cap, needed: Amount) -> BudgetSpentError:
        limit = getattr(self.limits, cap)
        spent = self.spent_of(cap)
        needs = {"max_calls": needed.calls, "max_tokens": needed.tokens}.get(cap, needed.picodollars / PICODOLLARS)
        share = tell_amount(cap, spent, limit=limit)
        message = f"The budget is spent: {share} ({flag_of(cap)})."
        if spent < limit:
            rest = "What is left of the budget is too little for the next call"
            message = f"{rest}: {share} spent ({flag_of(cap)}), it may need {tell_amount(cap, needs)}."
        # Twice as much, or what the next call needs where that is more.
        enough = max(2 * limit, spent + needs)
        larger = f"{math.ceil(enough * 100) / 100:g}" if cap == "max_cost" else str(math.ceil(enough))
        return BudgetSpentError(message, resume_flags=f"{flag_of(cap)} {larger}")


async def _wait_for(turn: asyncio.Event) -> None:
    await turn.wait()
