"""Which of several servers of one model takes a request.

Like the routers in front of vLLM and SGLang: a request goes where the beginning of its prompt was sent before, so that
the server finds it in its prefix cache, unless that server has more to do than its share; else to the one with the
least to do. A server that is lost is left out, and tried again with one request after a while.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drpo_graph.models.capabilities import Address
from drpo_graph.models.endpoint_gate import EndpointGate
from drpo_graph.models.prefix_cache import prefix_blocks
from drpo_graph.models.request import Request
from drpo_graph.models.transport import Transport
from drpo_graph.settings.settings import Routing

_LOAD_FACTOR = 1.25
"""A server is full when it has this many times its share (consistent hashing with bounded loads, arXiv 1608.01350)."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One server of a model."""

    endpoint: str
    """Where it is, for messages: never with a key."""
    transport: Transport
    gate: Callable[[], EndpointGate]
    """The running event loop's admission to it; replicas of several roles at one endpoint share it."""
    secret: str = field(default="", repr=False)
    """The key that is sent, so that messages can be kept free of it."""
    address: Address | None = None
    """Of an OpenAI-compatible server, for questions beside the calls."""
    identity: str = ""
    """What is served there, by a name that outlives the process: the URL, or the file of an embedded model."""


@dataclass(frozen=True, slots=True)
class Balancer:
    """Chooses among the replicas of one model; what it knows of them is their gates' and so shared by all roles."""

    replicas: tuple[Replica, ...]
    routing: Routing = "prefix"

    def choose(self, request: Request, *, avoid: Replica | None = None) -> Replica:
        """Return the replica that takes the request, and count on its taking it; the avoided one comes last."""
        if len(self.replicas) == 1:
            return self.replicas[0]
        eligible = self._eligible(avoid)
        blocks = prefix_blocks(request.messages) if self.routing == "prefix" else []
        chosen = min(eligible, key=lambda replica: self._cost(replica, blocks, eligible))
        gate = chosen.gate()
        gate.chosen_at = time.monotonic_ns()
        gate.prefixes.remember(blocks)
        return chosen

    @property
    def is_untried(self) -> bool:
        """Whether no replica has answered yet."""
        return all(one.gate().num_successes == 0 for one in self.replicas)

    def has_other(self, failed: Replica) -> bool:
        """Return whether another replica could take over at once."""
        return any(one is not failed and one.gate().is_open for one in self.replicas)

    def _eligible(self, avoid: Replica | None) -> list[Replica]:
        """Return those that are up, not told to pause, and not to be avoided; fewer conditions where none is left."""
        up = [one for one in self.replicas if one.gate().is_up]
        open_ones = [one for one in up if one.gate().is_open]
        others = [one for one in open_ones if one is not avoid]
        if others or open_ones or up:
            return others or open_ones or up
        return [min(self.replicas, key=lambda one: one.gate().lost_until)]

    def _cost(self, replica: Replica, blocks: Sequence[bytes], eligible: Sequence[Replica]) -> tuple[float, ...]:
        gate = replica.gate()
        if self.routing == "round_robin":
            return (gate.chosen_at,)
        if self.routing == "least_loaded":
            return (gate.load, gate.chosen_at)
        share = (sum(one.gate().load for one in eligible) + 1) / len(eligible)
        is_full = gate.load + 1 > math.ceil(_LOAD_FACTOR * share)
        return (is_full, -gate.prefixes.count_shared(blocks), gate.load, gate.chosen_at)
