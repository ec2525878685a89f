"""Measure what pre-screening saves on synthetic worlds: quality at equal calls, and calls at equal quality.

Run from a checkout: ``python scripts/measure_prescreening.py --seeds 16 --budgets 270 540 860 --jobs 2``. Each search
goes through the real graph once, a little deeper than the largest budget lasts; what it would deliver at a smaller one
is the best of the beam of the last level within it. A prompt's quality is its true mean score (1 to 5) on held-out
queries.

The world's prompts say what they are worth in words, so its embeddings are bags of words: ``words`` knows which words a
text has, ``phrases`` also which follow each other; ``minilm`` is the embedded model (extra ``retrieval``). ``truth``
chooses by the true quality: what a perfect reward model would bring. A call for more rewrites counts as one call, and
the tokens of those that are dropped are not counted.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # For tests.support.

from langchain_core.embeddings import Embeddings
from rich.console import Console
from rich.table import Table

from drpo_graph.events.schema import Event, LevelFinished
from drpo_graph.oirl.screening import RewardScreen
from drpo_graph.parts.screens import RewriteScreen, ScreenChoice, ScreenRequest
from drpo_graph.records import mean
from drpo_graph.retrieval import DEFAULT_EMBEDDINGS, CachedEmbeddings, make_embeddings
from drpo_graph.search.validation import mean_interval
from tests.support.searches import fake_settings, run_search
from tests.support.word_embeddings import WordEmbeddings
from tests.support.world import World

PLAIN = "off"
SCREENS = ("words", "phrases", "minilm", "truth")
DEFAULT_SCREENS = ("words", "phrases", "truth")

_NUM_RESAMPLES = 1000
_FIRST_STEP, _STEP = 20, 5
"""At which calls qualities are compared; the first is after the root's."""
_CALLS_PER_LEVEL = 12
"""A few less than a level takes by default, so that the largest budget is used up."""
_SPARE = 1.2
"""How much further than the largest budget searches go: a worse one reaches the same quality later."""


class Task(NamedTuple):
    """One search: with which screen, in which world."""

    screen: str
    seed: int
    num_proposed: int
    most_calls: int


class Point(NamedTuple):
    """A search after a level."""

    num_calls: int
    quality: float
    """Of the prompt that it would deliver: true mean score on the held-out queries, 1 to 5."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one search came to, level by level."""

    screen: str
    seed: int
    points: tuple[Point, ...]

    def quality_at(self, budget: float) -> float:
        """Return the quality that so many calls last for."""
        return [one.quality for one in self.points if one.num_calls <= budget][-1]


class Estimate(NamedTuple):
    """A mean over worlds with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


class TruthScreen:
    """Chooses by the true quality."""

    identity = "truth"

    def __init__(self, world: World) -> None:
        self._world = world

    async def choose(self, request: ScreenRequest) -> ScreenChoice:
        """Return the best rewrites."""
        values = tuple(map(self._world.quality, request.rewrites))
        order = sorted(range(len(values)), key=lambda place: -values[place])
        return ScreenChoice(tuple(order[: request.num_kept]), values)


def main() -> int:
    """Run the measurement and return the exit code."""
    args = _parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    most_calls = round(_SPARE * max(args.budgets))
    tasks = [Task(name, seed, args.n_proposed, most_calls) for seed in seeds for name in (PLAIN, *args.screens)]
    by_screen = _group(_run_tasks(tasks, num_jobs=args.jobs))
    console = Console(width=None if sys.stdout.isatty() else 120)
    for budget in args.budgets:
        console.print(_build_table(by_screen, budget))
    if args.output is not None:
        outcomes = [asdict(one) for group in by_screen.values() for one in group]
        args.output.write_text(json.dumps({"outcomes": outcomes}, indent=1) + "\n", encoding="utf-8")
    return 0


def search(task: Task) -> Outcome:
    """Return the outcome of a search that the most calls last for."""
    return asyncio.run(_search(task))


async def _search(task: Task) -> Outcome:
    world = _build_world(task.seed)
    screen = _make_screen(task.screen, world)
    proposed = {} if screen is None else {"n_proposed": task.num_proposed}
    settings = fake_settings(depth=2 + task.most_calls // _CALLS_PER_LEVEL, max_depth_increase=0, **proposed)
    finished: list[LevelFinished] = []

    def note(event: Event) -> None:
        if isinstance(event, LevelFinished):
            finished.append(event)

    run = await run_search(settings, world, world.train_queries, sinks=(note,), screen=screen)
    points = []
    for event in finished:
        prompt = await run.archive.prompt_of(event.beam[0].candidate_id)
        points.append(Point(event.usage.calls, world.quality(prompt)))
        if event.usage.calls > task.most_calls:
            break
    return Outcome(task.screen, task.seed, tuple(points))


def _make_screen(name: str, world: World) -> RewriteScreen | None:
    if name == PLAIN:
        return None
    if name == "truth":
        return TruthScreen(world)
    return RewardScreen(_make_embeddings(name), name)


@lru_cache(maxsize=3)
def _make_embeddings(name: str) -> Embeddings:
    if name == "minilm":
        return CachedEmbeddings(make_embeddings(DEFAULT_EMBEDDINGS), model=name)
    return WordEmbeddings(1 if name == "words" else 3)


@lru_cache(maxsize=2)
def _build_world(seed: int) -> World:
    return World(seed)


def _run_tasks(tasks: Sequence[Task], *, num_jobs: int) -> list[Outcome]:
    if num_jobs == 1:
        return _collect(map(search, tasks), len(tasks))
    with ProcessPoolExecutor(max_workers=num_jobs) as pool:
        return _collect(pool.map(search, tasks), len(tasks))


def _collect(outcomes: Iterable[Outcome], num_tasks: int) -> list[Outcome]:
    collected = []
    for outcome in outcomes:
        collected.append(outcome)
        print(f"\r{len(collected)}/{num_tasks} searches", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return collected


def _group(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    names = dict.fromkeys(one.screen for one in outcomes)
    return {name: [one for one in outcomes if one.screen == name] for name in names}


def _build_table(by_screen: Mapping[str, Sequence[Outcome]], budget: int) -> Table:
    plain = by_screen[PLAIN]
    table = Table(title=f"At most {budget} calls, {len(plain)} worlds", title_justify="left")
    for heading in ("screen", "quality (95%)", "minus off, paired (95%)", "calls saved at the quality of off (95%)"):
        table.add_column(heading)
    for name, group in by_screen.items():
        quality = _estimate([one.quality_at(budget) for one in group])
        cells = [name, _format(quality)]
        if name != PLAIN:
            pairs = zip(group, plain, strict=True)
            gain = _estimate([one.quality_at(budget) - other.quality_at(budget) for one, other in pairs])
            saved = _estimate_saved(group, plain, budget)
            cells += [_format(gain, sign="+"), _format(saved, sign="+", digits=0)]
        table.add_row(*cells)
    return table


def _estimate(values: Sequence[float]) -> Estimate:
    average = mean(list(values))
    interval = mean_interval(values, generator=random.Random("measure_prescreening"))
    assert average is not None
    # A single world gives no interval, hence no evidence.
    low, high = interval or (float("-inf"), float("inf"))
    return Estimate(average, low, high)


def _estimate_saved(group: Sequence[Outcome], plain: Sequence[Outcome], budget: int) -> Estimate:
    """Return how many calls less than the plain search reach, in the mean over worlds, what that has with a budget.

    Of both, the calls after which that is reached first count; where a search does not get there, all of its calls.
    """
    steps = range(_FIRST_STEP, min(one.points[-1].num_calls for one in (*group, *plain)), _STEP)
    curves = [[[one.quality_at(step) for step in steps] for one in outcomes] for outcomes in (plain, group)]
    targets = [one.quality_at(budget) for one in plain]

    def find(curve: Sequence[Sequence[float]], rows: Sequence[int]) -> int:
        target = sum(targets[row] for row in rows)
        reached = (step for place, step in enumerate(steps) if sum(curve[row][place] for row in rows) >= target)
        return next(reached, steps[-1])

    def compare(rows: Sequence[int]) -> float:
        return float(find(curves[0], rows) - find(curves[1], rows))

    generator, everyone = random.Random("measure_prescreening"), range(len(group))
    drawn = sorted(compare(generator.choices(everyone, k=len(group))) for _ in range(_NUM_RESAMPLES))
    tail = round(0.025 * _NUM_RESAMPLES)
    return Estimate(compare(everyone), drawn[tail], drawn[-tail - 1])


def _format(estimate: Estimate, *, sign: str = "", digits: int = 3) -> str:
    mean_text, low, high = (f"{one:{sign}.{digits}f}" for one in estimate)
    return f"{mean_text} ({low} to {high})"


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="how many worlds (default: 16)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first world (default: 0)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[270, 540, 860], help="model calls of a search")
    parser.add_argument("--screens", choices=SCREENS, nargs="+", default=DEFAULT_SCREENS, help="what chooses")
    parser.add_argument("--n-proposed", type=int, default=4, help="rewrites written for the two that are run")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--output", type=Path, help="write every outcome to this JSON file")
    args = parser.parse_args()
    if min(args.seeds, args.jobs, *args.budgets) < 1 or args.n_proposed < 2:
        parser.error("--seeds, --jobs and --budgets must be at least 1, and --n-proposed at least 2")
    return args


if __name__ == "__main__":
    sys.exit(main())
