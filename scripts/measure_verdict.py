"""Print how often "better" is said by chance, and how often where it is true, by queries, contenders and kind of score.

Worlds: each query has a level of its own, which all prompts share, and each prompt's score is drawn around it anew: no
prompt is better. For the power table, one contender is better by 0.3 on every query.

    python scripts/measure_verdict.py --trials 2000
"""

import argparse
import itertools
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from drpo_graph.records import ROOT_ID
from drpo_graph.search.validation import compare_on_validation

KINDS: Mapping[str, Callable[[random.Random, float], float]] = {
    "normal": lambda drawn, level: drawn.gauss(3 + level, 1),
    "skewed": lambda drawn, level: max(5 + level / 2 - drawn.expovariate(1.4), 1.0),
    "1 to 5": lambda drawn, level: float(min(max(round(drawn.gauss(3 + level, 1)), 1), 5)),
    "1 to 5, skewed": lambda drawn, level: float(min(max(round(5 + level / 2 - drawn.expovariate(1.1)), 1), 5)),
    "tied": lambda drawn, level: 3.0 if drawn.random() < 0.8 else float(drawn.randint(1, 5)),
}
QUERIES, CONTENDERS = (5, 10, 20, 40), (1, 4, 8, 16)
GAIN = 0.3


class Cell(NamedTuple):
    """Which worlds are drawn, and how many."""

    kind: str
    num_queries: int
    num_contenders: int
    gain: float
    trials: int
    num_flips: int


def measure(cell: Cell) -> float:
    """Return the share of worlds in which a contender is called better; with a gain, the one that is."""
    drawn, draw, found = random.Random(repr(cell)), KINDS[cell.kind], 0
    names = [ROOT_ID, *(f"1.{number}" for number in range(cell.num_contenders))]
    for trial in range(cell.trials):
        levels = [drawn.gauss(0, 0.7) for _ in range(cell.num_queries)]
        rewards = {
            name: {str(place): draw(drawn, level) + cell.gain * (name == "1.0") for place, level in enumerate(levels)}
            for name in names
        }
        found_here = compare_on_validation(rewards, seed=trial, num_flips=cell.num_flips)
        found += found_here.is_significant and (not cell.gain or found_here.selected_id == "1.0")
    return found / cell.trials


def main() -> None:
    """Measure every cell, and print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--num-flips", type=int, default=400, help="a run draws 2,000; more make the bound steadier")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        for title, gain in (("called better by chance, %", 0.0), (f"better by {GAIN}, and called so, %", GAIN)):
            places = list(itertools.product(KINDS, QUERIES, CONTENDERS))
            shares = pool.map(measure, [Cell(*place, gain, options.trials, options.num_flips) for place in places])
            by_place = dict(zip(places, shares, strict=True))
            print(f"| {title} | queries | {' | '.join(f'{one} contenders' for one in CONTENDERS)} |")
            print(f"|---|---|{'---|' * len(CONTENDERS)}")
            for kind, number in itertools.product(KINDS, QUERIES):
                row = " | ".join(f"{100 * by_place[kind, number, one]:.1f}" for one in CONTENDERS)
                print(f"| {kind} | {number} | {row} |", flush=True)
            if not gain:
                print(f"\nmost of a cell: {100 * max(by_place.values()):.1f}%\n")


if __name__ == "__main__":
    main()
