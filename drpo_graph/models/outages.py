"""Outages: an endpoint that is lost gets no calls but one probe at growing intervals, until it answers again.

A circuit per model and endpoint counts failures in a row. It opens when nobody takes a connection, with those of all
models there, or when different calls fail again and again without one success between them: one call alone may fail for
what it asks. While it is open, all calls wait and spend none of their retries. All times are of the monotonic clock:
setting the wall clock changes nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import EndpointBack, EndpointLost
from drpo_graph.models.failures import CallFailure

_MAX_IN_A_ROW = 5
_MAX_PROBE_PAUSE_S = 30.0
_GATEWAY_KINDS = frozenset({"http_502", "http_503", "http_504"})
"""What stands in front of the model says that it is not there: no fault of the request, even if one call hears it."""

Guard = Callable[[Coroutine[object, object, object]], Awaitable[None]]
"""Awaits something that only time ends; may raise instead, e.g. because the run was asked to stop."""


@dataclass(eq=False, slots=True)
class Outage:
    """A time for which an endpoint is taken to be lost."""

    endpoint: str
    failure: CallFailure
    since: float
    """When the first of its failures came, on the monotonic clock."""
    is_certain: bool
    """Whether nobody took a connection, or a probe has failed: before that, it may have been a few faults at once."""
    ended_at: float | None = None
    _told_by_run: dict[str, Literal["lost", "back"]] = field(default_factory=dict)

    @property
    def lasted_s(self) -> float:
        """How long it has lasted, or did."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.since

    def tell(self, emitter: Emitter, *, max_outage_s: float) -> None:
        """Tell a run once that the endpoint is lost, and once that it is back."""
        told = self._told_by_run.get(emitter.run_id)
        if self.ended_at is None and self.is_certain and told is None:
            self._told_by_run[emitter.run_id] = "lost"
            emitter.emit(
                EndpointLost(
                    run_id=emitter.run_id,
                    endpoint=self.endpoint,
                    kind=self.failure.kind,
                    detail=self.failure.message,
                    lost_s=round(self.lasted_s, 3),
                    max_outage_s=max_outage_s,
                )
            )
        elif self.ended_at is not None and told == "lost":
            self._told_by_run[emitter.run_id] = "back"
            emitter.emit(EndpointBack(run_id=emitter.run_id, endpoint=self.endpoint, lost_s=round(self.lasted_s, 3)))


class Circuit:
    """Whether a model at an endpoint is taken to be lost; of one event loop."""

    def __init__(self, family: Mapping[str, "Circuit"] | None = None) -> None:
        self.outage: Outage | None = None
        self.probe_at = 0.0
        """When a lost endpoint may be sent the next single call, on the monotonic clock."""
        self.failed_at = 0.0
        """When a try failed last, on the monotonic clock."""
        self.is_probing = False
        """Whether the one place of a probe is taken."""
        self.waiters: set[asyncio.Future[None]] = set()
        """Woken by every change."""
        self.num_exhausted = 0
        """Calls in a row that failed for good."""
        self._family = {} if family is None else family
        """The circuits of all models at the endpoint, by model."""
        self._num_failures = 0
        self._first_failure_at = 0.0
        self._failed_calls: set[object] = set()
        self._pause_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is lost, so that calls wait."""
        return self.outage is not None

    def note_failure(self, failure: CallFailure, call: object, *, endpoint: str, first_pause_s: float) -> None:
        """Count a try that the endpoint failed.

        Args:
            call: Whose try it was: tries of one call say less than those of several.
            first_pause_s: Time before the first probe; it doubles from there.
        """
        self.failed_at = time.monotonic()
        if self._num_failures == 0:
            self._first_failure_at = self.failed_at
        self._num_failures += 1
        self._failed_calls.add(call)
        if self.outage is not None:
            self.outage.is_certain = self.outage.is_certain or failure.is_unreached or self.is_probing
            return
        is_told_by_many = len(self._failed_calls) > 1 or failure.kind in _GATEWAY_KINDS
        if failure.is_unreached or (self._num_failures >= _MAX_IN_A_ROW and is_told_by_many):
            outage = Outage(endpoint, failure, self._first_failure_at, is_certain=failure.is_unreached)
            # Where nobody takes a connection, no model is there; anything else may be the fault of this one.
            for one in (self, *(self._family.values() if failure.is_unreached else ())):
                one._open(outage, first_pause_s)

    def note_exhausted(self) -> int:
        """Count a call that failed for good; return how many did in a row."""
        self.num_exhausted += 1
        return self.num_exhausted

    def note_success(self) -> None:
        """Take note of a reply."""
        self.num_exhausted = 0
        self.note_sign_of_life()

    def note_sign_of_life(self) -> None:
        """Take the endpoint to be there: it gave a reply, or an error about the request."""
        ended, self.outage = self.outage, None
        self._num_failures = 0
        self._failed_calls.clear()
        if ended is not None:
            ended.ended_at = time.monotonic()
            self._wake()
            for one in self._family.values():
                if one.outage is ended:
                    one.note_sign_of_life()

    def _open(self, outage: Outage, first_pause_s: float) -> None:
        if self.outage is None:
            self.outage = outage
            self._pause_s = first_pause_s
            self.probe_at = time.monotonic() + first_pause_s

    def end_probe(self) -> None:
        """Take note that the probe has ended; where the endpoint is still lost, the next one comes later."""
        self.is_probing = False
        self._pause_s = min(2 * self._pause_s, _MAX_PROBE_PAUSE_S)
        self.probe_at = time.monotonic() + self._pause_s
        self._wake()

    def _wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


def are_lost(circuits: Sequence[Circuit]) -> bool:
    """Return whether every server of a model is lost."""
    return all(one.is_open for one in circuits)


@dataclass(slots=True)
class Waiting:
    """One call's part in outages: what it has waited for."""

    outages: list[Outage] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)
    """When the call was begun, on the monotonic clock."""

    async def admit(
        self,
        circuits: Sequence[Circuit],
        *,
        max_outage_s: float,
        has_ended: Callable[[str], bool],
        emitter: Emitter,
        guard: Guard,
    ) -> Circuit | None:
        """Return as soon as the call may be sent: the circuit that it is to probe, or ``None`` where one is up.

        Args:
            circuits: Of all servers of the call's model.
            max_outage_s: How long the call may wait; 0 does not wait.
            has_ended: Whether the server at an endpoint is known to be gone for good.
            guard: What it raises ends the wait.

        Raises:
            OutageOverdueError: every server has been lost for longer than allowed, or for good.
        """
        while max_outage_s > 0 and are_lost(circuits):
            present = [one.outage for one in circuits if one.outage is not None]
            self.outages += [one for one in present if one not in self.outages]
            self.tell(emitter, max_outage_s=max_outage_s)
            latest = max(present, key=lambda one: one.since)
            if all(has_ended(one.endpoint) for one in present):
                raise OutageOverdueError(latest, is_for_good=True)
            now = time.monotonic()
            # An outage may be one that a former run left behind: what came before the call is not its own wait.
            left_s = max_outage_s - (now - max(latest.since, self.began_at))
            idle = [one for one in circuits if not one.is_probing]
            # No call is given up for what others saw before it: each server has failed a try since then.
            due = [one for one in idle if (now >= one.probe_at if left_s > 0 else one.failed_at < self.began_at)]
            if due:
                due[0].is_probing = True
                return due[0]
            if left_s <= 0 and len(idle) == len(circuits):
                raise OutageOverdueError(latest)
            # A probe that is under way is let finish: a slow server is not a lost one.
            pause_s = min([left_s, *(one.probe_at - now for one in idle)]) if left_s > 0 else None
            with _listening(circuits) as woken, suppress(TimeoutError):
                await guard(asyncio.wait_for(woken, pause_s))
        self.tell(emitter, max_outage_s=max_outage_s)
        return None

    def tell(self, emitter: Emitter, *, max_outage_s: float) -> None:
        """Tell the run what it does not know yet of the outages that this call has waited for."""
        for outage in self.outages:
            outage.tell(emitter, max_outage_s=max_outage_s)


class OutageOverdueError(Exception):
    """An outage has lasted longer than the run may wait. Never reaches a node."""

    def __init__(self, outage: Outage, *, is_for_good: bool = False) -> None:
        super().__init__(outage.failure.message)
        self.outage = outage
        self.is_for_good = is_for_good
        """Whether it is known that the server does not come back."""


@contextmanager
def _listening(circuits: Sequence[Circuit]) -> Iterator[asyncio.Future[None]]:
    """Lend a future that the next change of a circuit ends, be it one that comes before the future is awaited."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for one in circuits:
        one.waiters.add(woken)
    try:
        yield woken
    finally:
        for one in circuits:
            one.waiters.discard(woken)


def never_ends(endpoint: str) -> bool:
    """Know of no server that it has ended for good."""
    return False
