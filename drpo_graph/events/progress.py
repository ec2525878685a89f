"""How long the rest of a run takes, by what it has told so far: a fold over its events, without a clock."""

from dataclasses import dataclass, field

from drpo_graph.events import schema
from drpo_graph.events.pace import Pace


@dataclass(slots=True)
class _Parts:
    """A run of equal parts: ICL examples, or trials."""

    num_all: int
    num_before: int = 0
    """Those that former processes finished."""
    num_done: int = 0
    """Those of this process."""

    def remaining_s(self, own_s: float) -> float | None:
        num_left = max(self.num_all - self.num_before - self.num_done, 0)
        return own_s / self.num_done * num_left if self.num_done else None


@dataclass(slots=True)
class Progress:
    """What one process's events say about the rest of the run; :meth:`take` is its only way to change."""

    _pace: Pace = field(default_factory=Pace)
    _taken_up_at: float | None = None
    _max_depth: int = 0
    _level: int = 0
    _is_level_finished: bool = False
    _level_started_at: float | None = None
    _num_late_rollouts: int = 0
    """Rollouts since the last level was finished: validation."""
    _parts: _Parts | None = None
    _example_ids: set[str] = field(default_factory=set)

    def take(self, event: schema.Event) -> None:
        """Take note of an event."""
        if self._taken_up_at is None:
            # A resumed graph may go on in the middle of a level, without a first event.
            self._taken_up_at = event.time
        match event:
            case schema.RunStarted() | schema.ICLStarted() | schema.CollectionStarted():
                self._start(event)
            case schema.LevelStarted():
                self._enter_level(event.level)
                self._max_depth = event.max_depth
                # What is left of a level that was begun before says nothing about how long a level takes.
                self._level_started_at = None if event.num_done else event.time
            case schema.RolloutScored():
                if event.level > self._level:
                    self._enter_level(event.level)
                self._num_late_rollouts += self._is_level_finished
            case schema.LevelFinished():
                self._finish_level(event)
            case schema.ValidationStarted():
                self._pace.num_validation_rollouts = event.num_rollouts
            case schema.CallFinished() if not event.from_ledger:
                self._pace.take_call(event.role, event.duration_s)
            case schema.ICLExampleFinished() if self._parts is not None:
                # One that is told again counts once.
                self._example_ids.add(event.example_id)
                self._parts.num_done = len(self._example_ids)
            case schema.TrialFinished() if self._parts is not None:
                self._parts.num_done += not event.was_unlabelled

    def remaining_s(self, now: float) -> float | None:
        """Return the estimated seconds left: ``None`` until a level past the root's, an example or a trial is done."""
        if self._parts is not None:
            return self._parts.remaining_s(max(now - (self._taken_up_at or now), 0.0))
        validation_s = self._pace.validation_s(self._num_late_rollouts)
        if self._is_level_finished and self._level >= self._max_depth:
            return validation_s or None
        level_s = self._pace.level_s
        if level_s is None:
            return None
        spent_s = 0.0
        if self._level_started_at is not None and not self._is_level_finished:
            spent_s = min(max(now - self._level_started_at, 0.0), level_s)
        num_done = self._level if self._is_level_finished else max(self._level - 1, 0)
        return max((self._max_depth - num_done) * level_s - spent_s, 0.0) + validation_s

    def _start(self, event: schema.RunStarted | schema.ICLStarted | schema.CollectionStarted) -> None:
        self._taken_up_at = event.time
        # The pause before a resume is no part of a level's duration.
        self._level_started_at = None
        if isinstance(event, schema.RunStarted):
            self._max_depth = max(self._max_depth, event.num_levels)
            self._pace.max_concurrency = event.max_concurrency
        elif isinstance(event, schema.ICLStarted):
            self._parts = _Parts(event.num_examples)
        else:
            num_before = sum(one.num_labelled + one.num_unlabelled for one in event.prompts)
            self._parts = _Parts(event.num_planned, num_before)

    def _enter_level(self, level: int) -> None:
        self._level, self._is_level_finished = level, False
        self._level_started_at, self._num_late_rollouts = None, 0

    def _finish_level(self, event: schema.LevelFinished) -> None:
        if event.level != self._level:
            self._enter_level(event.level)
        if event.level and self._level_started_at is not None:
            self._pace.take_level(event.time - self._level_started_at)
        self._max_depth, self._is_level_finished = event.max_depth, True
        if event.remaining is not None:
            self._pace.num_validation_rollouts = event.remaining.num_validation_rollouts
