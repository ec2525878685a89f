"""Limits are no failures: a call that is told to come later waits, and spends none of its tries.

What is waited out is bounded: a call gives up where nothing at its endpoint has got through for as long as a run waits
for a lost one, or where it is told to come later than that.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from drpo_graph.models.failures import CallFailure

_UNTOLD_WAIT_S = 120.0
"""How long a limit is waited out whose end the server does not tell: two windows of a minute."""
_MIN_ANNOUNCED_S = 5.0


@dataclass(slots=True)
class LimitWait:
    """One call's wait for its endpoint's limits."""

    clock: Callable[[], float] = time.monotonic
    _since: float = 0.0
    _num_successes: int | None = None

    def left_s(self, failure: CallFailure, *, num_successes: int, max_outage_s: float) -> float:
        """Return how much longer the limit that a try met may be waited out.

        Args:
            failure: The try's.
            num_successes: Replies that the endpoint has given so far: each one is proof that it lets calls through.
            max_outage_s: How long the run waits for a lost endpoint.
        """
        now = self.clock()
        if num_successes != self._num_successes:
            self._num_successes, self._since = num_successes, now
        most_s = max_outage_s if failure.retry_after_s else min(max_outage_s, _UNTOLD_WAIT_S)
        return most_s - (now - self._since)


@dataclass(slots=True)
class LimitNotices:
    """Which waits for limits a run was told of: the first one worth it, then those that are twice as long."""

    _announced_s: dict[str, float] = field(default_factory=dict)
    """The longest one, by endpoint."""

    def is_news(self, endpoint: str, wait_s: float) -> bool:
        """Return whether to tell of a wait, and take it as told."""
        if wait_s < max(_MIN_ANNOUNCED_S, 2 * self._announced_s.get(endpoint, 0.0)):
            return False
        self._announced_s[endpoint] = wait_s
        return True
