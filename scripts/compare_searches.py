"""Compare the default search with the published one on synthetic worlds, at equal numbers of model calls.

Run from a checkout: ``python scripts/compare_searches.py --seeds 16 --budgets 270 860 --jobs 2``. Each search goes
through the real graph and gets the largest depth whose calls fit the budget; a prompt's quality is its true mean score
(1 to 5) on held-out queries. Exits with 1 unless ours is better than every published setting at every budget: the
paired 95% bootstrap interval over the worlds lies above 0.
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

from rich.console import Console
from rich.table import Table

from drpo_graph.records import mean
from drpo_graph.search.validation import mean_interval
from drpo_graph.settings.settings import Settings
from tests.support.searches import fake_settings, run_search
from tests.support.world import INITIAL_PROMPT, World

OURS = "ours"
SETTINGS_BY_NAME: Mapping[str, Mapping[str, object]] = {
    OURS: {},
    "drpo 2x3": {"compat": "drpo", "beam_size": 2, "n_actions": 3},
    "drpo 5x4": {"compat": "drpo", "beam_size": 5, "n_actions": 4},
}

_MIN_DEPTH = 2


class Task(NamedTuple):
    """One search: of which settings, in which world, at how many calls."""

    name: str
    seed: int
    budget: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one search came to."""

    name: str
    seed: int
    budget: int
    depth: int
    num_calls: int
    initial_quality: float
    quality: float
    """Of the delivered prompt: true mean score on the held-out queries, 1 to 5."""


class Estimate(NamedTuple):
    """A mean over worlds with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def main() -> int:
    """Run the comparison and return the exit code."""
    args = _parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    tasks = [Task(name, seed, budget) for budget in args.budgets for name in SETTINGS_BY_NAME for seed in seeds]
    outcomes = _run_tasks(tasks, num_jobs=args.jobs)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for budget in args.budgets:
        console.print(_build_table([one for one in outcomes if one.budget == budget], budget))
    is_better = all(
        estimate.low > 0 for budget in args.budgets for estimate in _compare_with_ours(outcomes, budget).values()
    )
    console.print(
        f"Ours is {'' if is_better else 'NOT '}better than every published setting at every budget "
        "(lower end of the paired 95% interval above 0)."
    )
    if args.output is not None:
        _write_report(args.output, outcomes, args.budgets, is_better=is_better)
    return 0 if is_better else 1


def fit_search(task: Task) -> Outcome:
    """Return the outcome of the deepest search whose calls do not exceed the budget."""
    return asyncio.run(_fit_search(task))


async def _fit_search(task: Task) -> Outcome:
    # Easy and repeated prompts make levels cheaper, so calls are counted rather than planned.
    most_per_level = _most_calls_per_level(task.name)
    fitting = await _search(task, max(_MIN_DEPTH, task.budget // most_per_level))
    while fitting.num_calls > task.budget:
        if fitting.depth == _MIN_DEPTH:
            raise SystemExit(f"{task.budget} calls do not last for one level of {task.name!r}: give a larger budget.")
        fitting = await _search(task, fitting.depth - 1)
    while True:
        step = max(1, (task.budget - fitting.num_calls) // most_per_level)
        deeper = await _search(task, fitting.depth + step)
        while deeper.num_calls > task.budget and step > 1:
            step //= 2  # Easy levels added further ones.
            deeper = await _search(task, fitting.depth + step)
        # A search that ended by itself makes no more calls, however deep it may go.
        if deeper.num_calls > task.budget or deeper.num_calls == fitting.num_calls:
            return fitting
        fitting = deeper


async def _search(task: Task, depth: int) -> Outcome:
    world = _build_world(task.seed)
    run = await run_search(_build_settings(task.name, depth), world, world.train_queries)
    return Outcome(
        **task._asdict(),
        depth=depth,
        num_calls=len(run.transport.requests),
        initial_quality=world.quality(INITIAL_PROMPT),
        quality=world.quality(run.result.system_prompt),
    )


def _build_settings(name: str, depth: int) -> Settings:
    return fake_settings(**SETTINGS_BY_NAME[name], depth=depth)


@lru_cache(maxsize=2)
def _build_world(seed: int) -> World:
    return World(seed)


def _most_calls_per_level(name: str) -> int:
    """Return what a level costs that spares no call: optimizer, base, critic, and the metrics of new queries."""
    settings = _build_settings(name, _MIN_DEPTH)
    num_children = settings.beam_size * (settings.n_actions + settings.keep_parents)
    return settings.beam_size + (2 * num_children + 1) * settings.queries_per_level


def _run_tasks(tasks: Sequence[Task], *, num_jobs: int) -> list[Outcome]:
    if num_jobs == 1:
        return _collect(map(fit_search, tasks), len(tasks))
    with ProcessPoolExecutor(max_workers=num_jobs) as pool:
        return _collect(pool.map(fit_search, tasks), len(tasks))


def _collect(outcomes: Iterable[Outcome], num_tasks: int) -> list[Outcome]:
    collected = []
    for outcome in outcomes:
        collected.append(outcome)
        print(f"\r{len(collected)}/{num_tasks} searches", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return collected


def _build_table(outcomes: Sequence[Outcome], budget: int) -> Table:
    by_name = _group_by_name(outcomes)
    comparisons = _compare_with_ours(outcomes, budget)
    initial = _estimate([one.initial_quality for one in by_name[OURS]])
    table = Table(
        title=f"At most {budget} calls, {len(by_name[OURS])} worlds; the initial prompt has {initial.mean:.2f}",
        title_justify="left",
    )
    for heading in ("search", "depth", "calls", "held-out quality (95%)", "ours minus it, paired (95%)"):
        table.add_column(heading)
    for name, group in by_name.items():
        depths = sorted(one.depth for one in group)
        table.add_row(
            name,
            f"{depths[0]}-{depths[-1]}" if depths[0] < depths[-1] else str(depths[0]),
            f"{_estimate([float(one.num_calls) for one in group]).mean:.0f}",
            _format(_estimate([one.quality for one in group])),
            _format(comparisons[name], sign="+") if name in comparisons else "",
        )
    return table


def _compare_with_ours(outcomes: Sequence[Outcome], budget: int) -> dict[str, Estimate]:
    """Return by published setting how much better ours is in the same worlds."""
    by_name = _group_by_name([one for one in outcomes if one.budget == budget])
    return {
        name: _estimate([ours.quality - other.quality for ours, other in zip(by_name[OURS], group, strict=True)])
        for name, group in by_name.items()
        if name != OURS
    }


def _group_by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    return {name: [one for one in outcomes if one.name == name] for name in SETTINGS_BY_NAME}


def _estimate(values: Sequence[float]) -> Estimate:
    average = mean(list(values))
    interval = mean_interval(values, generator=random.Random("compare_searches"))
    assert average is not None
    # A single world gives no interval, hence no evidence.
    low, high = interval or (float("-inf"), float("inf"))
    return Estimate(average, low, high)


def _format(estimate: Estimate, *, sign: str = "") -> str:
    return f"{estimate.mean:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def _write_report(path: Path, outcomes: Sequence[Outcome], budgets: Sequence[int], *, is_better: bool) -> None:
    report = {
        "is_better": is_better,
        "settings": SETTINGS_BY_NAME,
        "differences": {
            str(budget): {name: one._asdict() for name, one in _compare_with_ours(outcomes, budget).items()}
            for budget in budgets
        },
        "outcomes": [asdict(one) for one in outcomes],
    }
    path.write_text(json.dumps(report, indent=1, default=dict) + "\n", encoding="utf-8")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="how many worlds (default: 16)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first world (default: 0)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[270, 860], help="model calls a search may make")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--output", type=Path, help="write every outcome to this JSON file")
    args = parser.parse_args()
    if min(args.seeds, args.jobs, *args.budgets) < 1:
        parser.error("--seeds, --jobs and --budgets must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
