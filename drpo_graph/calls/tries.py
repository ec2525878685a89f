"""What a call's tries say about the servers of its model, and when the next one may be sent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from drpo_graph.calls.rate_limits import LimitWait
from drpo_graph.errors import ModelCallError
from drpo_graph.events.emitter import Emitter
from drpo_graph.models.balancer import Replica
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.outages import Circuit, OutageOverdueError, Waiting, are_lost
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import StopSignal


@dataclass(eq=False, slots=True)
class Tries:
    """What has happened to one call so far."""

    retries: dict[str, int] = field(default_factory=dict)
    """Failed tries by kind."""
    num_spent: int = 0
    """Those that count against the limit: not those while the endpoint was lost."""
    is_told: bool = False
    """Whether it was told that the call has started."""
    waiting: Waiting = field(default_factory=Waiting)
    limits: LimitWait = field(default_factory=LimitWait)

    def count(self, failure: CallFailure, *, is_spent: bool = True) -> None:
        """Count one failed try."""
        self.retries[failure.kind] = self.retries.get(failure.kind, 0) + 1
        self.num_spent += is_spent


class Attempt(NamedTuple):
    """One try that failed: where and how, and those of the call before it."""

    replica: Replica
    failure: CallFailure
    tries: Tries


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a role's model, as a run's calls find them."""

    client: ModelClient
    settings: Settings
    emitter: Emitter
    stop: StopSignal
    has_ended: Callable[[str], bool]
    """Whether the server at an endpoint is known to be gone for good."""

    async def admit(self, tries: Tries) -> Circuit | None:
        """Return when the call may be sent: the circuit that it probes, where all servers are lost.

        Raises:
            ModelCallError: they have been lost for longer than the run waits, or for good.
        """
        try:
            return await tries.waiting.admit(
                self._circuits,
                max_outage_s=self.settings.max_outage_s,
                has_ended=self.has_ended,
                emitter=self.emitter,
                guard=self.stop.guard,
            )
        except OutageOverdueError as error:
            outage, failure = error.outage, error.outage.failure
            limit = "and its server has ended" if error.is_for_good else "longer than max_outage_s allows"
            said = failure.message.rstrip(".!?")
            raise ModelCallError(
                f"The {self.client.role} model {self.client.settings.model!r} at {outage.endpoint} has been away for "
                f"{outage.lasted_s:.0f} s, {limit} ({failure.kind}: {said}). Start its server again, then resume.",
                kind="unreachable" if failure.kind == "connection" else failure.kind,
                role=self.client.role,
            ) from error

    @property
    def are_lost(self) -> bool:
        """Whether there is no server that a call could be sent to, so that it waits."""
        return self.settings.max_outage_s > 0 and are_lost(self._circuits)

    def circuit_of(self, replica: Replica) -> Circuit:
        """Return whether the model is lost at one of its servers."""
        return replica.gate().circuit_of(self.client.settings.model)

    def replica_of(self, circuit: Circuit) -> Replica:
        """Return the server that a circuit is of."""
        return next(one for one in self.client.replicas if self.circuit_of(one) is circuit)

    def note_failure(self, failed: Attempt) -> None:
        """Take a failed try for what it says about the endpoint."""
        replica, failure, tries = failed
        circuit = self.circuit_of(replica)
        if not failure.is_of_endpoint:
            circuit.note_sign_of_life()
        elif self._waits:
            circuit.note_failure(failure, tries, endpoint=replica.endpoint, first_pause_s=self.settings.retry_wait_s)

    def are_to_blame(self, failure: CallFailure) -> bool:
        """Return whether a try failed for what is waited out, and so costs the call nothing.

        A connection that nobody takes is no fault of the request, even while another server is still thought to be up.
        """
        return self.are_lost or (failure.is_unreached and self._waits)

    def limit_left_s(self, failed: Attempt) -> float | None:
        """Return how much longer the limit that a try met may be waited out; ``None`` where it met none."""
        replica, failure, tries = failed
        if not failure.is_limit or not self.settings.max_outage_s:
            return None
        num_successes = replica.gate().num_successes
        return tries.limits.left_s(failure, num_successes=num_successes, max_outage_s=self.settings.max_outage_s)

    @property
    def _waits(self) -> bool:
        """Whether a loss is waited out: a server that was never reached is no outage but a mistake, told at once."""
        return self.settings.max_outage_s > 0 and not self.client.balancer.is_untried

    @property
    def _circuits(self) -> list[Circuit]:
        return [self.circuit_of(replica) for replica in self.client.replicas]
