"""One scheduler per process: how many calls an endpoint gets at once, and how many per second.

The limiter is outside and the throttle inside it, so that few calls poll the throttle at a time. An overloaded
endpoint halves the limit and pauses; each window of successes opens it by one again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from asyncio_throttle.throttler import Throttler

from drpo_graph.models.outages import Circuit, Guard
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.prefix_cache import PrefixMemory

_FIRST_LOST_S = 0.5
_MAX_LOST_S = 30.0


async def wait_out(waiting: Coroutine[object, object, object]) -> None:
    """Await it to its end."""
    await waiting


class EndpointGate:
    """Admission to one endpoint, on one event loop."""

    def __init__(self, *, max_concurrency: int, requests_per_second: float | None) -> None:
        self.max_concurrency = max_concurrency
        self.num_successes = 0
        self.chosen_at = 0
        """When it was last chosen among several, in nanoseconds of the monotonic clock."""
        self.prefixes = PrefixMemory()
        self.lost_until = 0.0
        """When a lost endpoint is to be tried again, on the monotonic clock."""
        self._circuits: dict[str, Circuit] = {}
        self._num_losses = 0
        self._successes_at_limit = 0
        self._resume_at = 0.0
        self._limiter = CapacityLimiter(max_concurrency)
        self._throttler = _make_throttler(requests_per_second)

    @asynccontextmanager
    async def slot(self, guard: Guard = wait_out) -> AsyncIterator[None]:
        """Hold one of the endpoint's places, in order of arrival, once its pause and its rate allow.

        The guard awaits both; what it raises gives the place back.
        """
        place = object()  # Not the task, as it is by default: one task may hold several places.
        await self._limiter.acquire_on_behalf_of(place)
        try:
            await self._wait_for_turn(guard)
            yield
        finally:
            self._limiter.release_on_behalf_of(place)

    def circuit_of(self, model: str) -> Circuit:
        """Return the circuit of a model at the endpoint: one model may be lost while others are served there."""
        if model not in self._circuits:
            self._circuits[model] = Circuit(self._circuits)
        return self._circuits[model]

    @property
    def limit(self) -> int:
        """How many calls may be in flight now."""
        return int(self._limiter.total_tokens)

    @property
    def num_in_flight(self) -> int:
        """Calls that hold a place."""
        return self._limiter.borrowed_tokens

    @property
    def load(self) -> int:
        """Calls in flight or waiting for a place."""
        return self.num_in_flight + self._limiter.statistics().tasks_waiting

    @property
    def is_up(self) -> bool:
        """Whether it may be sent requests: not lost, or lost long enough ago for one request to try it."""
        return self._num_losses == 0 or (time.monotonic() >= self.lost_until and self.load == 0)

    @property
    def is_open(self) -> bool:
        """Whether it is up, and has not asked for a pause."""
        return self.is_up and time.monotonic() >= self._resume_at

    def note_lost(self) -> None:
        """Leave the endpoint out for a while, twice as long each time in a row; its cache is taken to be gone."""
        if self._num_losses == 0 or time.monotonic() >= self.lost_until:
            pause_s = min(_MAX_LOST_S, _FIRST_LOST_S * 2**self._num_losses)
            self._num_losses += 1
            self.lost_until = time.monotonic() + pause_s
        self.prefixes.forget()

    def note_success(self) -> None:
        """Count a reply; a window of them opens the gate by one place."""
        self._num_losses = 0
        self.num_successes += 1
        self._successes_at_limit += 1
        if self._successes_at_limit >= self.limit and self.limit < self.max_concurrency:
            self._successes_at_limit = 0
            self._limiter.total_tokens += 1

    def note_overload(self, *, pause_s: float) -> None:
        """Halve the places (once per window of successes) and let nothing start for a while."""
        self._resume_at = max(self._resume_at, time.monotonic() + pause_s)
        if self._successes_at_limit > 0 or self.limit == self.max_concurrency:
            self._limiter.total_tokens = max(1, self.limit // 2)
        self._successes_at_limit = 0

    def configure(self, *, max_concurrency: int) -> None:
        """Take the concurrency limit of the run that asked last; what an overload took away stays away."""
        if max_concurrency != self.max_concurrency:
            is_whole = self.limit == self.max_concurrency
            self._limiter.total_tokens = max_concurrency if is_whole else min(self.limit, max_concurrency)
            self.max_concurrency = max_concurrency

    async def _wait_for_turn(self, guard: Guard) -> None:
        """Return when neither a pause nor the rate forbids a request."""
        while True:
            # Only time ends a pause, and a further overload may prolong it: there is no event to wait for.
            while (wait_s := self._resume_at - time.monotonic()) > 0:
                await guard(asyncio.sleep(wait_s))
            if self._throttler is None:
                return
            await guard(_take_turn(self._throttler))
            if self._resume_at <= time.monotonic():
                return


_gates: PerLoop[dict[str, EndpointGate]] = PerLoop(dict)


def gate_for(endpoint: str, *, max_concurrency: int, requests_per_second: float | None) -> EndpointGate:
    """Return the running loop's gate for an endpoint; runs that share the endpoint and its rate share the gate."""
    gates = _gates.get()
    name = f"{endpoint} {requests_per_second or ''}"
    gate = gates.get(name)
    if gate is None:
        gate = EndpointGate(max_concurrency=max_concurrency, requests_per_second=requests_per_second)
        gates[name] = gate
    gate.configure(max_concurrency=max_concurrency)
    return gate


async def _take_turn(throttler: Throttler) -> None:
    async with throttler:
        return


def _make_throttler(requests_per_second: float | None) -> Throttler | None:
    """Return a throttle; rates below one per second become one request per longer period."""
    if requests_per_second is None:
        return None
    if requests_per_second < 1:
        return Throttler(rate_limit=1, period=1 / requests_per_second)
    whole = int(requests_per_second)
    return Throttler(rate_limit=whole, period=whole / requests_per_second)
