"""What a display shows of a run: a pure fold over its events, of bounded size and without a clock."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from drpo_graph.display.collection import CollectionView
from drpo_graph.display.formatting import format_duration
from drpo_graph.events import schema
from drpo_graph.events.base import ProgressEvent
from drpo_graph.records import ROLES, Role, Usage

RATE_WINDOW_S = 30
"""Calls per second are a mean over this many seconds."""

MAX_HISTORY, MAX_MESSAGES, MAX_KINDS, MAX_TEXT = 512, 20, 24, 500

Phase = Literal[
    "starting", "root", "level", "examples", "trials", "choosing", "done", "interrupted", "waiting", "failed"
]


class Message(NamedTuple):
    """One line for people."""

    elapsed_s: float
    """Since the run began, without the pauses between its processes."""
    kind: Literal["warning", "unscored", "note"]
    text: str
    """May hold model text: show it inert."""


@dataclass(slots=True)
class RoleCalls:
    """One role's calls in this process, and how many came from the ledger instead."""

    usage: Usage = field(default_factory=Usage)
    from_ledger: int = 0
    retries: int = 0


@dataclass(slots=True)
class ExamplesView:
    """What a display shows of a run over ICL examples."""

    num_examples: int
    num_iters: int
    num_samples: int
    finished: dict[str, schema.ICLExampleFinished]
    """By the example's id, in the order in which they were finished; one that repeats after a resume counts once."""


@dataclass(slots=True)
class RunView:
    """Everything a display shows; :meth:`apply` is its only way to change."""

    run_id: str = ""
    models: dict[str, str] = field(default_factory=dict)
    beam_size: int = 0
    phase: Phase = "starting"

    level: int | None = None
    """The level at work or just finished; 0 is the root's evaluation."""
    max_depth: int = 0
    is_level_finished: bool = False
    num_rollouts: int | None = None
    """Rollouts expected in this level; ``None`` when its start was not seen, as after a resume in its middle."""
    rollouts: set[tuple[str, str]] = field(default_factory=set)
    """(candidate id, query id) of this level's rollouts so far."""
    num_unscored: int = 0
    """Of this level's rollouts."""
    num_late_rollouts: int = 0
    """Rollouts since the last level finished: validation."""

    beam: tuple[schema.BeamEntry, ...] = ()
    best: schema.BeamEntry | None = None
    """Best path reward since depth 1; the root until then."""
    history: dict[int, float | None] = field(default_factory=dict)
    """Best path reward of the beam by level."""

    calls: dict[Role, RoleCalls] = field(default_factory=lambda: {role: RoleCalls() for role in ROLES})
    retries_by_kind: Counter[str] = field(default_factory=Counter)
    failures_by_kind: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    """The whole run's, former processes included as soon as a level has finished."""
    cost_usd: float | None = 0.0
    """What that cost; ``None`` where a model has no price."""
    remaining: schema.Remaining | None = None
    """About what was left to do when the last level was finished."""
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=MAX_MESSAGES))
    lost_endpoints: set[str] = field(default_factory=set)
    """Those that the run waits for."""
    stopped: schema.RunStopped | None = None
    examples: ExamplesView | None = None
    """Of a run over ICL examples, which has neither levels nor a beam."""
    collection: CollectionView | None = None
    """Of a run that collects demonstrations, which has neither, too."""

    _started_at: float | None = None
    """When the run would have begun if its processes had followed each other without a pause."""
    _taken_up_at: float | None = None
    """When this process began."""
    _ended_at: float | None = None
    _estimate: tuple[float, float] | None = None
    """When it was told how many seconds are left, and how many."""
    # Calls per second of time: bounded by the window, whatever the rate.
    _calls_by_second: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_S + 1))

    @property
    def levels_done(self) -> int:
        """Finished levels of the search, the root's evaluation not counted."""
        level = self.level or 0
        return level if self.is_level_finished else max(level - 1, 0)

    @property
    def num_from_ledger(self) -> int:
        """Calls that a former process had paid for."""
        return sum(calls.from_ledger for calls in self.calls.values())

    @property
    def num_retries(self) -> int:
        """Requests sent again."""
        return sum(calls.retries for calls in self.calls.values())

    @property
    def process_usage(self) -> Usage:
        """What this process's calls consumed."""
        total = Usage()
        for calls in self.calls.values():
            total = total.plus(calls.usage)
        return total

    def elapsed_s(self, now: float) -> float:
        """Return the seconds that the run's processes have worked on it; they stand still once it has ended."""
        return self._seconds_since(self._started_at, now)

    def _seconds_since(self, start: float | None, now: float) -> float:
        return 0.0 if start is None else max((now if self._ended_at is None else self._ended_at) - start, 0.0)

    def remaining_s(self, now: float) -> float | None:
        """Return the estimated seconds left: what was told last, less the time since; ``None`` where nothing tells."""
        if self._ended_at is not None or self._estimate is None:
            return None
        told_at, remaining_s = self._estimate
        return max(remaining_s - max(now - told_at, 0.0), 0.0)

    def _calls_of(self, role: Role) -> RoleCalls:
        # Few runs embed texts: that role's row comes with its first call.
        return self.calls.setdefault(role, RoleCalls())

    def calls_per_s(self, now: float) -> float:
        """Return this process's finished calls per second over the last seconds."""
        num_calls = sum(count for second, count in self._calls_by_second if second > now - RATE_WINDOW_S)
        return num_calls / min(max(self._seconds_since(self._taken_up_at, now), 1.0), RATE_WINDOW_S)

    def apply(self, event: schema.Event) -> None:
        """Take one event into the view. An event that repeats after a resume counts once, where it has an id."""
        if self._started_at is None:
            # A resumed graph may go on in the middle of a level, without a first event.
            self.run_id, self._started_at, self._taken_up_at = event.run_id, event.time - event.elapsed_s, event.time
        if isinstance(event, ProgressEvent):
            self._estimate = None if event.remaining_s is None else (event.time, event.remaining_s)
        match event:
            case schema.RunStarted() | schema.ICLStarted() | schema.CollectionStarted():
                self._start(event)
            case schema.LevelStarted():
                self._start_level(event)
            case schema.RolloutScored():
                self._score_rollout(event)
            case schema.LevelFinished():
                self._finish_level(event)
            case schema.CallFinished():
                self._finish_call(event)
            case schema.CallRetried():
                self._calls_of(event.role).retries += 1
                _count(self.retries_by_kind, event.kind)
            case schema.EndpointLost():
                self.lost_endpoints.add(event.endpoint)
                self._note(event.time, "warning", describe_endpoint(event))
            case schema.EndpointBack():
                # One server of a model is enough; what is still lost is told when it is waited for.
                self.lost_endpoints.clear()
                self._note(event.time, "note", describe_endpoint(event))
            case schema.RunFinished():
                self.phase, self._ended_at = "done", event.time
                if event.elapsed_s:
                    self._started_at = event.time - event.elapsed_s
            case schema.RunStopped():
                self.phase, self.stopped, self._ended_at = event.reason, event, event.time
            case schema.ReviewRequested() | schema.ReviewDecided():
                self._note(event.time, "note", describe_review(event))
            case schema.ICLExampleFinished() if self.examples is not None:
                self.examples.finished[event.example_id] = event
            case schema.TrialFinished() if self.collection is not None:
                self.collection.take(event)
                if event.failure_kind is not None:
                    self._note_failure(event, f"{event.prompt_name} on {event.query_id}", event.failure_kind)
            case schema.ICLFinished() | schema.CollectionFinished():
                self.phase, self._ended_at = "done", event.time
            case schema.Warned():
                self._note(event.time, "warning", event.message)

    def _start(self, event: schema.RunStarted | schema.ICLStarted | schema.CollectionStarted) -> None:
        self.run_id, self.models = event.run_id, dict(event.models)
        self._started_at, self._taken_up_at = event.time - event.former_s, event.time
        self._ended_at, self.stopped = None, None
        self._estimate = None
        self._calls_by_second.clear()
        if isinstance(event, schema.RunStarted):
            self.beam_size = event.beam_size
            self.max_depth = max(self.max_depth, event.num_levels)
            self.lost_endpoints.clear()
        elif isinstance(event, schema.CollectionStarted):
            self.phase, self.collection = "trials", CollectionView.start(event)
        else:
            finished = self.examples.finished if self.examples else {}
            self.phase = "examples"
            self.examples = ExamplesView(event.num_examples, event.num_iters, event.num_samples, finished)

    def _start_level(self, event: schema.LevelStarted) -> None:
        if event.level != self.level:
            self._enter_level(event.level)
        self.max_depth, self.num_rollouts, self.is_level_finished = event.max_depth, event.num_rollouts, False

    def _enter_level(self, level: int) -> None:
        self.level, self.is_level_finished, self.num_rollouts = level, False, None
        self.phase = "level" if level else "root"
        self.rollouts.clear()
        self.num_unscored = self.num_late_rollouts = 0

    def _score_rollout(self, event: schema.RolloutScored) -> None:
        if self.examples is None and (self.level is None or event.level > self.level):
            self._enter_level(event.level)
        key = (event.candidate_id, event.query_id)
        if key in self.rollouts:
            return
        if event.level == self.level and not self.is_level_finished:
            self.rollouts.add(key)
            self.num_unscored += event.reward is None
        else:
            self.num_late_rollouts += 1
        if event.failure_kind is not None:
            self._note_failure(event, f"{event.candidate_id} on {event.query_id}", event.failure_kind)

    def _note_failure(self, event: schema.RolloutScored | schema.TrialFinished, where: str, kind: str) -> None:
        _count(self.failures_by_kind, kind)
        self._note(event.time, "unscored", f"{where}: {kind}" + (f"  {event.detail}" if event.detail else ""))

    def _finish_level(self, event: schema.LevelFinished) -> None:
        if event.level != self.level:
            self._enter_level(event.level)
        if event.is_easy:
            self._note(event.time, "note", f"level {event.level} was easy; the search may go to {event.max_depth}")
        self.max_depth, self.is_level_finished, self.beam = event.max_depth, True, event.beam
        self.usage, self.cost_usd, self.remaining = event.usage, event.cost_usd, event.remaining
        if event.level >= event.max_depth:
            self.phase = "choosing"
        self._remember_best(event)

    def _remember_best(self, event: schema.LevelFinished) -> None:
        top = max(event.beam, key=_path_reward, default=None)
        self.history[event.level] = top.path_reward if top else None
        while len(self.history) > MAX_HISTORY:
            self.history.pop(next(iter(self.history)))
        # The root's own reward is no path reward: the first level replaces it, whichever is higher.
        is_first = self.best is None or all(level == 0 for level in self.history if level != event.level)
        if top is not None and (is_first or self.best is None or _path_reward(top) > _path_reward(self.best)):
            self.best = top

    def _finish_call(self, event: schema.CallFinished) -> None:
        calls = self._calls_of(event.role)
        if event.from_ledger:
            calls.from_ledger += 1
            return
        usage = event.usage if event.usage.calls else event.usage.plus(Usage(calls=1))
        calls.usage = calls.usage.plus(usage)
        self.usage = self.usage.plus(usage)
        is_known = self.cost_usd is not None and event.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (event.cost_usd or 0.0) if is_known else None
        # Times may arrive slightly out of order: a late one joins the latest second.
        second, count = self._calls_by_second[-1] if self._calls_by_second else (int(event.time), 0)
        if self._calls_by_second and int(event.time) <= second:
            self._calls_by_second[-1] = (second, count + usage.calls)
        else:
            self._calls_by_second.append((int(event.time), usage.calls))

    def _note(self, time: float, kind: Literal["warning", "unscored", "note"], text: str) -> None:
        self.messages.append(Message(self.elapsed_s(time), kind, text[:MAX_TEXT]))


def describe_endpoint(event: schema.EndpointLost | schema.EndpointBack) -> str:
    """Return what a lost endpoint, or one that is back, means for the run."""
    if isinstance(event, schema.EndpointBack):
        return f"back {event.endpoint} answers again after {format_duration(event.lost_s)}"
    limit = format_duration(event.max_outage_s)
    return f"lost {event.endpoint} ({event.kind}: {event.detail}); calls wait for it, {limit} at most"


def describe_review(event: schema.ReviewRequested | schema.ReviewDecided) -> str:
    """Return what waits for a decision, or what was decided."""
    if isinstance(event, schema.ReviewRequested):
        return f"level {event.level} waits for a decision about {', '.join(event.candidate_ids)}"
    return describe_decision(
        event.level, event.author, vetoed=event.vetoed_ids, edited=event.edited_ids, note=event.note
    )


def describe_decision(level: int, author: str, *, vetoed: Iterable[str], edited: Iterable[str], note: str) -> str:
    """Return what a person decided about a level, in one line."""
    done = {"vetoed": ", ".join(vetoed), "edited": ", ".join(edited)}
    what = " and ".join(f"{verb} {ids}" for verb, ids in done.items() if ids) or "approved"
    return f"level {level}: {author} {what}" + (f" ({note})" if note else "")


def _count(counter: Counter[str], kind: str) -> None:
    counter[kind if kind in counter or len(counter) < MAX_KINDS else "other"] += 1


def _path_reward(entry: schema.BeamEntry) -> float:
    return float("-inf") if entry.path_reward is None else entry.path_reward
