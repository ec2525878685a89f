"""The remaining time is believable: runs are simulated on a clock of their own."""

import heapq
import random
import statistics
from collections.abc import Iterator

import pytest

from drpo_graph.events.progress import Progress
from drpo_graph.events.schema import (
    BeamEntry,
    CallFinished,
    Event,
    LevelFinished,
    LevelStarted,
    Remaining,
    RolloutScored,
    RunFinished,
    RunStarted,
    ValidationStarted,
)
from drpo_graph.records import ROOT_ID, Role, Usage
from tests.display.sample_events import sample_result

NUM_LEVELS, NUM_QUERIES = 29, 2
MEAN_S: dict[Role, float] = {"base": 4.0, "critic": 3.0, "optimizer": 9.0}
ENTRY = BeamEntry(candidate_id="1.0.0", reward=4.0, path_reward=4.0, origin="rewrite")


class SimulatedRun:
    """A run whose calls take random times: some levels are easy, and some calls wait for a limit."""

    def __init__(self, seed: int, *, num_validation: int, max_concurrency: int = 16) -> None:
        self._random = random.Random(f"simulated run/{seed}")
        self._num_validation, self._max_concurrency = 5 * num_validation, max_concurrency
        self._now = 1_000.0
        self._max_depth = NUM_LEVELS

    def events(self) -> Iterator[Event]:
        """Yield what the run tells."""
        yield self._start()
        level = 0
        while level <= self._max_depth:
            yield from self._level(level)
            level += 1
        if self._num_validation:
            yield ValidationStarted(run_id="r", time=self._now, candidate_ids=(), num_rollouts=self._num_validation)
            yield from self._work([["base", "critic"]] * self._num_validation, level - 1)
        yield RunFinished(run_id="r", time=self._now, result=sample_result())

    def _start(self) -> Event:
        return RunStarted(
            run_id="r",
            time=self._now,
            is_resumed=False,
            num_queries=NUM_QUERIES,
            num_levels=NUM_LEVELS,
            beam_size=2,
            n_actions=2,
            queries_per_level=NUM_QUERIES,
            models={},
            initial_prompt="p",
            max_concurrency=self._max_concurrency,
        )

    def _level(self, level: int) -> Iterator[Event]:
        is_easy = level > 3 and self._random.random() < 0.1
        chains: list[list[Role]] = [["base", "critic"]] * NUM_QUERIES
        if level:
            chains = [["optimizer", "base", "critic"]] * (2 if is_easy else 4) * NUM_QUERIES
        yield LevelStarted(
            run_id="r",
            time=self._now,
            level=level,
            max_depth=self._max_depth,
            query_ids=(),
            num_rollouts=len(chains),
        )
        yield from self._work(chains, level)
        self._max_depth += is_easy and self._max_depth < NUM_LEVELS + 5
        yield LevelFinished(
            run_id="r",
            time=self._now,
            level=level,
            max_depth=self._max_depth,
            beam=(ENTRY,),
            num_children=4,
            num_unscored=0,
            is_easy=is_easy,
            usage=Usage(),
            remaining=Remaining(calls=1, tokens=1, cost_usd=None, num_validation_rollouts=self._num_validation),
        )

    def _work(self, chains: list[list[Role]], level: int) -> Iterator[Event]:
        """Carry out chains of calls, as many at once as may be in flight, and tell them in the order of their ends."""
        free = [self._now] * self._max_concurrency
        told: list[tuple[float, int, Event]] = []
        for number, chain in enumerate(chains):
            at = heapq.heappop(free)
            for role in chain:
                took_s = self._random.lognormvariate(0, 0.4) * MEAN_S[role]
                took_s += 60 * (self._random.random() < 0.005)
                at += took_s
                call = CallFinished(
                    run_id="r", time=at, role=role, model="m", key="k", num_samples=1, duration_s=took_s, usage=Usage()
                )
                told.append((at, len(told), call))
            scored = RolloutScored(
                run_id="r", time=at, candidate_id=ROOT_ID, query_id=f"{level}/{number}", level=level, reward=4.0
            )
            told.append((at, len(told), scored))
            heapq.heappush(free, at)
        for _, _, event in sorted(told, key=lambda one: one[:2]):
            yield event
        self._now = max(at for at, _, _ in told)


@pytest.mark.parametrize(("num_validation", "max_concurrency"), [(0, 16), (20, 16), (60, 8), (60, 4)])
def test_median_error_after_a_fifth_of_a_run_is_under_a_third(num_validation: int, max_concurrency: int) -> None:
    errors: list[float] = []
    for seed in range(8):
        events = list(SimulatedRun(seed, num_validation=num_validation, max_concurrency=max_concurrency).events())
        begin, end = events[0].time, events[-1].time
        progress = Progress()
        for event in events[:-1]:
            progress.take(event)
            # The very end is seconds: whoever reads it there has no time to be wrong about.
            if 0.2 <= (event.time - begin) / (end - begin) <= 0.95:
                told_s = progress.remaining_s(event.time)
                assert told_s is not None
                errors.append(abs(told_s - (end - event.time)) / (end - event.time))
    assert len(errors) > 1000
    assert statistics.median(errors) < 0.3


def test_resumed_process_goes_by_its_own_levels_and_not_by_what_was_left_of_one() -> None:
    started = RunStarted.model_validate(next(SimulatedRun(0, num_validation=0).events()).model_dump())
    progress = Progress()
    progress.take(started.model_copy(update={"is_resumed": True, "former_s": 900.0}))
    for level, num_done, took_s in ((4, 3, 1.0), (5, 0, 20.0)):
        begins = started.time + 10 * level
        begun = LevelStarted(
            run_id="r", time=begins, level=level, max_depth=9, query_ids=(), num_rollouts=8, num_done=num_done
        )
        progress.take(begun)
        finished = LevelFinished(
            run_id="r",
            time=begins + took_s,
            level=level,
            max_depth=9,
            beam=(ENTRY,),
            num_children=4,
            num_unscored=0,
            is_easy=False,
            usage=Usage(),
        )
        progress.take(finished)
    assert progress.remaining_s(started.time + 70) == pytest.approx(4 * 20)
