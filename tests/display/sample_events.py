"""A believable run as events: four levels, a beam of 2 with 3 rewrites each, five queries per level."""

import io
import random
from collections.abc import Generator, Iterator

from rich.console import Console, RenderableType

from drpo_graph.display.view import RunView
from drpo_graph.events.base import ProgressEvent
from drpo_graph.events.progress import Progress
from drpo_graph.events.schema import (
    BeamEntry,
    CallFinished,
    CallRetried,
    CandidateCreated,
    Event,
    LevelFinished,
    LevelStarted,
    MetricsSelected,
    RolloutScored,
    RunFinished,
    RunStarted,
    RunStopped,
    ValidationFinished,
    Warned,
)
from drpo_graph.records import (
    ROLES,
    Metric,
    Origin,
    PairedComparison,
    Role,
    RunResult,
    Usage,
    Validation,
)

RUN_ID = "brisk-heron-42"
START = 1_760_000_000.0
MODELS = {
    "base": "vllm:meta-llama/Llama-3.1-8B-Instruct",
    "metrics": "openai:gpt-4o-mini",
    "critic": "openai:gpt-4o-mini",
    "optimizer": "openai:gpt-4.1",
}
INITIAL_PROMPT = "You are a helpful assistant."
BEST_PROMPT = """You are a careful, honest assistant. Before you answer, find what the person needs.

1. Answer the question first, in plain words; then give the reasons.
2. Say what you do not know. Never invent facts, names or sources.
3. When a request could hurt someone, say so kindly and offer a safe way to reach the real goal."""
FILES = ("result.json", "best_prompt.txt", "events.jsonl")
COMMANDS = (
    f"drpo resume {RUN_ID} --checkpoint runs/checkpoints.sqlite",
    f"drpo show {RUN_ID} --checkpoint runs/checkpoints.sqlite",
    f"drpo report {RUN_ID} -o {RUN_ID}.html",
)
_USAGE: dict[Role, tuple[int, int, float]] = {
    "base": (140, 260, 0.3),
    "metrics": (520, 140, 0.0),
    "critic": (900, 330, 0.55),
    "optimizer": (2600, 420, 0.1),
}


class SampleRun:
    """Makes the events of a run, numbered and with times that grow."""

    def __init__(self, *, levels: int = 4, beam_size: int = 2, n_actions: int = 3, queries_per_level: int = 5) -> None:
        self.levels, self.beam_size, self.n_actions, self.num_queries = levels, beam_size, n_actions, queries_per_level
        self.time, self.seq, self.usage = START, 0, dict.fromkeys(ROLES, Usage())
        self._random = random.Random("sample run")
        self._progress = Progress()

    def stamp(self, event: Event, *, after_s: float = 0.0) -> Event:
        """Return the event with the run's id, the next number and time."""
        self.time += after_s
        self.seq += 1
        stamp = {"run_id": RUN_ID, "seq": self.seq, "time": self.time, "elapsed_s": self.time - START}
        return estimated(self._progress, event.model_copy(update=stamp))

    def events(self) -> Iterator[Event]:
        """Yield the whole run."""
        yield self.stamp(run_started(self))
        beam = yield from self._level(0, parents=())
        for level in range(1, self.levels + 1):
            beam = yield from self._level(level, parents=beam)
        yield self.stamp(validation_finished(), after_s=4.0)
        yield self.stamp(RunFinished(run_id=RUN_ID, result=sample_result(usage_by_role=self.usage)))

    def _level(self, level: int, *, parents: tuple[BeamEntry, ...]) -> Generator[Event, None, tuple[BeamEntry, ...]]:
        query_ids = tuple(f"q-{level * self.num_queries + i:03d}" for i in range(self.num_queries))
        ids = [f"{level}.{p}.{a}" for p in range(len(parents)) for a in range(self.n_actions)] or ["0"]
        yield self.stamp(
            LevelStarted(
                run_id=RUN_ID,
                level=level,
                max_depth=self.levels,
                query_ids=query_ids,
                num_rollouts=len(ids) * len(query_ids),
            ),
            after_s=0.2,
        )
        for query_id in query_ids:
            yield self._call("metrics")
            metrics = (Metric(name="Accuracy", definition="True."),)
            yield self.stamp(MetricsSelected(run_id=RUN_ID, query_id=query_id, metrics=metrics, reasoning="Facts."))
        entries = []
        for candidate_id in ids:
            entries.append((yield from self._candidate(candidate_id, level=level, query_ids=query_ids)))
        beam = tuple(sorted(entries, key=lambda entry: -(entry.path_reward or 0))[: self.beam_size])
        total = Usage()
        for usage in self.usage.values():
            total = total.plus(usage)
        yield self.stamp(
            LevelFinished(
                run_id=RUN_ID,
                level=level,
                max_depth=self.levels,
                beam=beam,
                num_children=len(ids),
                num_unscored=1 if level == 2 else 0,
                is_easy=False,
                usage=total,
            )
        )
        return beam

    def _candidate(
        self, candidate_id: str, *, level: int, query_ids: tuple[str, ...]
    ) -> Generator[Event, None, BeamEntry]:
        origin: Origin = "rewrite" if level else "initial"
        if candidate_id.endswith(".0"):
            yield self._call("optimizer")
        yield self.stamp(
            CandidateCreated(
                run_id=RUN_ID, candidate_id=candidate_id, parent_id="0", depth=level, origin=origin, prompt=BEST_PROMPT
            )
        )
        rewards = []
        for i, query_id in enumerate(query_ids):
            yield self._call("base")
            yield self._call("critic")
            reward = min(3.0 + 0.32 * level + self._random.uniform(-0.5, 0.5), 5.0)
            is_lost = candidate_id == "2.1.0" and i == 3
            if not is_lost:
                rewards.append(reward)
            yield self.stamp(rollout_scored(candidate_id, query_id, level=level, reward=None if is_lost else reward))
        if candidate_id == "2.0.1":
            yield self.stamp(
                CallRetried(run_id=RUN_ID, role="critic", model="m", kind="http_429", attempt=1, wait_s=2.0)
            )
            yield self.stamp(Warned(run_id=RUN_ID, message="openai:gpt-4o-mini refuses json_schema; json is used"))
        value = round(sum(rewards) / len(rewards), 2)
        return BeamEntry(candidate_id=candidate_id, reward=value, path_reward=value, origin=origin)

    def _call(self, role: Role) -> Event:
        tokens_in, tokens_out, cached = _USAGE[role]
        prompt_tokens = tokens_in + self._random.randrange(tokens_in // 4)
        usage = Usage(
            calls=1,
            prompt_tokens=prompt_tokens,
            completion_tokens=tokens_out + self._random.randrange(60),
            cached_tokens=int(prompt_tokens * cached),
        )
        self.usage[role] = self.usage[role].plus(usage)
        call = CallFinished(
            run_id=RUN_ID, role=role, model=MODELS[role], key=f"k{self.seq}", num_samples=1, duration_s=1.1, usage=usage
        )
        return self.stamp(call, after_s=self._random.uniform(0.1, 0.4))


def estimated(progress: Progress, event: Event) -> Event:
    """Return an event with the remaining time, as it is told."""
    progress.take(event)
    if not isinstance(event, ProgressEvent):
        return event
    return event.model_copy(update={"remaining_s": progress.remaining_s(event.time)})


def sample_events() -> list[Event]:
    """Return the events of the whole run."""
    return list(SampleRun().events())


def view_of(*events: Event) -> RunView:
    """Return what a display knows after these events."""
    view = RunView()
    for event in events:
        view.apply(event)
    return view


def page_of(renderable: RenderableType, *, width: int = 120) -> str:
    """Return what is printed on a console without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable, crop=False)
    return capture.get()


def run_started(run: SampleRun | None = None, *, is_resumed: bool = False) -> RunStarted:
    """Return the first event."""
    run = run or SampleRun()
    return RunStarted(
        run_id=RUN_ID,
        time=START,
        is_resumed=is_resumed,
        num_queries=run.num_queries * (run.levels + 1),
        num_levels=run.levels,
        beam_size=run.beam_size,
        n_actions=run.n_actions,
        queries_per_level=run.num_queries,
        models=MODELS,
        initial_prompt=INITIAL_PROMPT,
    )


def rollout_scored(candidate_id: str, query_id: str, *, level: int, reward: float | None) -> RolloutScored:
    """Return a rollout: unscored as unparsable when it has no reward."""
    return RolloutScored(
        run_id=RUN_ID,
        time=START,
        candidate_id=candidate_id,
        query_id=query_id,
        level=level,
        reward=reward,
        failure_kind="unparsable" if reward is None else None,
        detail="no score for metric 'Clarity' (got 'Depth')" if reward is None else "",
    )


def validation_finished(*, is_significant: bool = True) -> ValidationFinished:
    """Return the verdict on the held-out queries."""
    return ValidationFinished(
        run_id=RUN_ID,
        selected_id="4.0.2",
        difference=0.82,
        interval_low=0.41 if is_significant else -0.12,
        interval_high=1.2,
        is_significant=is_significant,
    )


def run_stopped(*, is_resumable: bool = True) -> RunStopped:
    """Return the event of a run that ended before its result."""
    return RunStopped(
        run_id=RUN_ID,
        time=START + 60,
        reason="failed",
        message="critic openai:gpt-4o-mini: HTTP 401, the key is refused.",
        is_resumable=is_resumable,
    )


def sample_validation(*, is_significant: bool = True, selected_id: str = "4.0.2") -> Validation:
    """Return a validation with one contender."""
    comparison = PairedComparison(
        candidate_id="4.0.2",
        num_queries=40,
        reward=4.1,
        difference=0.82,
        interval_low=0.41 if is_significant else -0.12,
        interval_high=1.2,
    )
    return Validation(
        num_queries=40,
        initial_reward=3.28,
        comparisons=(comparison,),
        selected_id=selected_id,
        is_significant=is_significant,
    )


def sample_result(**changes: object) -> RunResult:
    """Return the result of the run, with some fields changed."""
    result = RunResult(
        thread_id=RUN_ID,
        status="done",
        system_prompt=BEST_PROMPT,
        candidate_id="4.0.2",
        reward=4.32,
        path_reward=4.32,
        initial_prompt=INITIAL_PROMPT,
        initial_reward=3.04,
        initial_reward_same_queries=3.11,
        depth=4,
        trace=("0", "1.0.2", "2.0.1", "3.0.0", "4.0.2"),
        beam=("4.0.2", "4.1.0"),
        validation=sample_validation(),
        usage_by_role={"base": Usage(calls=95, prompt_tokens=14_900, completion_tokens=27_400, cached_tokens=4_100)},
        failures_by_kind={"unparsable": 1, "http_429": 1},
        fingerprints={"settings": "5f0c", "prompts": "91aa"},
        format=1,
    )
    return result.model_copy(update=changes)
