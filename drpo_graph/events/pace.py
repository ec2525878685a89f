"""How fast a run goes, and what follows for the rest of it."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from drpo_graph.records import Role

_RECENT_LEVELS = 16
"""The remaining time goes by as many levels: a run's later ones are more alike."""


@dataclass(slots=True)
class Pace:
    """How long levels and calls of this process take."""

    max_concurrency: int = 0
    """Calls in flight at most; 0 where that is not known."""
    num_validation_rollouts: int = 0
    """What the validation has to do in all."""
    _level_durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_LEVELS))
    _call_seconds: dict[Role, tuple[float, int]] = field(default_factory=dict)

    def take_level(self, duration_s: float) -> None:
        """Take note of a level that was worked on from its start to its end."""
        self._level_durations_s.append(max(duration_s, 0.0))

    def take_call(self, role: Role, duration_s: float) -> None:
        """Take note of a call."""
        seconds, number = self._call_seconds.get(role, (0.0, 0))
        self._call_seconds[role] = seconds + duration_s, number + 1

    @property
    def level_s(self) -> float | None:
        """About how long a level takes; ``None`` before one is finished."""
        return _middle_mean(self._level_durations_s) if self._level_durations_s else None

    def validation_s(self, num_done: int) -> float:
        """Return about how long the rest of the validation takes: its rollouts are at work at once, where they may."""
        num_left = max(self.num_validation_rollouts - num_done, 0)
        if not num_left or not self.max_concurrency:
            return 0.0
        known = (self._call_seconds[role] for role in ("base", "critic") if role in self._call_seconds)
        rollout_s = sum(seconds / number for seconds, number in known)
        return rollout_s * max(num_left / self.max_concurrency, 1.0)


def _middle_mean(values: Collection[float]) -> float:
    """Return the mean of the middle half: one level that waited for a lost server does not decide."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)
