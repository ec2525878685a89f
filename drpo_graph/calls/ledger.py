"""The call ledger: every finished model call, committed before its result is used.

LangGraph's own checkpoints repeat a call whose node had not been saved when the process died. The ledger is keyed by
the content of the call, so a resumed run takes what was paid for from here, and identical calls in flight are one.
"""

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from pydantic import Field, JsonValue

from drpo_graph.calls.budget import Budget, UnsavedBudgetError
from drpo_graph.calls.failed_samples import FailureNotes
from drpo_graph.errors import BudgetSpentError
from drpo_graph.models.request import Choice
from drpo_graph.records import Record, Role, Usage
from drpo_graph.settings.prices import to_dollars
from drpo_graph.stop import SingleFlight, StopSignal
from drpo_graph.storage.archive import STORE_ERRORS, Archive, Change

logger = logging.getLogger(__name__)

_KEEP_TIME_EVERY_S = 5.0


class CallRecord(Record):
    """One finished call, as the ledger keeps it."""

    role: Role
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    retries: dict[str, int] = Field(default_factory=dict)
    """Transport failures before it succeeded, by kind."""
    is_inherited: bool = False
    """Whether the run that this one is a fork of made it, and paid for it."""


class LedgerEntry(NamedTuple):
    """A call's record, and whether it had been paid for before."""

    record: CallRecord
    is_replayed: bool


def call_key(parts: Mapping[str, JsonValue]) -> str:
    """Return the ledger key of a call: the SHA-256 of everything that decides its reply."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def mark_inherited(stored: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a stored call as a fork's ledger keeps it: its reply counts, its cost does not."""
    return {**stored, "is_inherited": True}


class Ledger:
    """One run's finished calls. Bound to one event loop; :meth:`load` comes first."""

    def __init__(self, archive: Archive, stop: StopSignal, budget: Budget | None = None) -> None:
        self.stop = stop
        self.budget = budget or Budget()
        self.failures = FailureNotes(archive)
        self._archive = archive
        self._stored_keys: set[str] = set()
        self._in_flight: SingleFlight[str, CallRecord] = SingleFlight()
        self._releases: dict[str, asyncio.Task[None]] = {}
        self._timekeeper: asyncio.Task[None] | None = None
        self.usage_by_role: dict[str, Usage] = {}
        self._cost_by_role: dict[str, int | None] = {}
        self.retries_by_kind: Counter[str] = Counter()

    async def load(self) -> None:
        """Read which calls former processes finished, and what they used."""
        await self.failures.load()
        finished: dict[str, Usage] = {}
        for key, record in (await self._archive.records("calls", CallRecord)).items():
            self._stored_keys.add(key)
            if record.is_inherited:
                continue
            self._tally(record)
            self.budget.count(record.model, record.usage)
            finished[key] = record.usage
        await self.budget.load(self._archive, finished)

    def holds(self, key: str) -> bool:
        """Return whether the call is committed."""
        return key in self._stored_keys

    async def once(
        self,
        key: str,
        call: Callable[[], Awaitable[CallRecord]],
        *,
        on_commit: Callable[[CallRecord], None] | None = None,
    ) -> LedgerEntry:
        """Return the call's record from the ledger, from the same call in flight, or by making it.

        A call that was begun is finished and committed even if its caller is cancelled meanwhile.

        Args:
            on_commit: Told of the record once it is stored, where this caller's ``call`` was the one made.

        Raises:
            RunInterruptedError: the run was asked to stop, and this call had not begun.
        """
        if key in self._stored_keys:
            stored = await self._archive.record("calls", key, CallRecord)
            if stored is not None:
                return LedgerEntry(stored, is_replayed=True)
        if key not in self._in_flight.tasks:
            self.stop.check()
        record = await self._in_flight.share(key, lambda: self._make(key, call, on_commit))
        return LedgerEntry(record, is_replayed=False)

    async def release(self, question: str, keys: Iterable[str]) -> None:
        """Let the finished calls of a question be made again; they stay in the tally of what was used.

        Once in a process: those who ask the same beside or after the first find its calls.
        """
        task = self._releases.get(question)
        if task is None:
            task = asyncio.create_task(self._release(tuple(keys)))
            self._releases[question] = task
        await asyncio.shield(task)

    @property
    def num_in_flight(self) -> int:
        """Calls begun and not yet committed."""
        return len(self._in_flight.tasks)

    async def drain(self) -> None:
        """Return when every call in flight is committed or has failed, and what was spent is stored."""
        while self._in_flight.tasks:
            await asyncio.wait(self._in_flight.tasks.values())
            await asyncio.sleep(0)
        await asyncio.gather(*self._releases.values(), return_exceptions=True)
        if self._timekeeper is not None:
            self._timekeeper.cancel()
        error = await self._save_budget()
        # A run that stops because of its store says so itself, and once is enough.
        if error is not None and not isinstance(self.stop.cause, STORE_ERRORS):
            logger.warning("What the run has spent could not be stored: %s", error)

    def total_usage(self) -> Usage:
        """Return what all roles used."""
        total = Usage()
        for usage in self.usage_by_role.values():
            total = total.plus(usage)
        return total

    @property
    def cost_by_role(self) -> dict[str, float]:
        """What each role's calls cost, in USD, for the roles whose models have a price."""
        return {role: to_dollars(cost) for role, cost in self._cost_by_role.items() if cost is not None}

    @property
    def total_cost(self) -> float | None:
        """What all calls cost, in USD; ``None`` where a model has no price."""
        costs = [cost for cost in self._cost_by_role.values() if cost is not None]
        return to_dollars(sum(costs)) if len(costs) == len(self._cost_by_role) else None

    async def _make(
        self,
        key: str,
        call: Callable[[], Awaitable[CallRecord]],
        on_commit: Callable[[CallRecord], None] | None,
    ) -> CallRecord:
        if self.budget.limits.max_time is not None and (self._timekeeper is None or self._timekeeper.done()):
            self._timekeeper = asyncio.create_task(self._keep_time())
        try:
            record = await call()
        except UnsavedBudgetError as error:
            raise error.reason from None
        await self._archive.put("calls", key, record.model_dump(mode="json", exclude_defaults=True))
        self._stored_keys.add(key)
        self.budget.commit(key)
        self._tally(record)
        if on_commit is not None:
            on_commit(record)
        return record

    async def _release(self, keys: tuple[str, ...]) -> None:
        """Put calls, and what was noted of their replies, under keys that no question has."""
        moved: dict[Change, Mapping[str, JsonValue] | None] = {}
        for key in keys:
            place = 0
            while await self._archive.get("calls", f"{key}/{place}") is not None:
                place += 1
            former: tuple[Change, Change] = (("calls", key), ("failures", f"reply/{key}"))
            for kind, name in former:
                stored = await self._archive.get(kind, name)
                if stored is not None:
                    moved[kind, name], moved[kind, f"{name}/{place}"] = None, stored
        await self._archive.change(moved)
        self._stored_keys.difference_update(keys)

    async def _keep_time(self) -> None:
        """While calls are in flight, store the time worked; stop the run when it is up, even one that only waits."""
        while self._in_flight.tasks:
            try:
                self.budget.check_time()
            except BudgetSpentError as error:
                self.stop.request(str(error), error)
                return
            # A store that stays lost stops the run by itself: no reply is committed, and no request is sent.
            await self._save_budget()
            await asyncio.sleep(min(_KEEP_TIME_EVERY_S, self.budget.remaining_s))

    async def _save_budget(self) -> Exception | None:
        try:
            await self.budget.save()
        except STORE_ERRORS as error:
            logger.debug("What the run has spent could not be stored: %s", error)
            return error
        return None

    def _tally(self, record: CallRecord) -> None:
        cost, former = self.budget.prices.cost_of(record.model, record.usage), self._cost_by_role.get(record.role, 0)
        self._cost_by_role[record.role] = None if cost is None or former is None else former + cost
        self.usage_by_role[record.role] = self.usage_by_role.get(record.role, Usage()).plus(record.usage)
        self.retries_by_kind.update(record.retries)
