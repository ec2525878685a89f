"""What a choice without labels is worth: how many labelled trials of the new prompts would choose as well."""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import Floats

Strategy = Literal["uniform", "halving"]
"""``uniform``: every prompt is tried equally often. ``halving``: the worse half goes, round by round."""

STRATEGIES: Final[tuple[Strategy, ...]] = ("uniform", "halving")
_REPEATS: Final = 300
_TRIALS_PER_PROMPT: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class CallsPoint(NamedTuple):
    """What the prompt chosen after some labelled calls brings, on average."""

    strategy: Strategy
    num_calls: int
    value: float


def measure_curve(outcomes: Floats, *, seed: int) -> list[CallsPoint]:
    """Return how good the prompt is that labelled trials choose, by their number.

    Args:
        outcomes: Of the queries on which every new prompt was tried, ``(num_queries, num_prompts)``. Trials are drawn
            from them, and the chosen prompt's mean on all of them is its value.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    num_queries, num_prompts = outcomes.shape
    values = outcomes.mean(axis=0)
    points = []
    for per_prompt in (one for one in _TRIALS_PER_PROMPT if one <= num_queries):
        budget = per_prompt * num_prompts
        for strategy in STRATEGIES:
            run = _halve if strategy == "halving" else _try_all
            chosen = [run(outcomes, budget, random) for _ in range(_REPEATS)]
            points.append(CallsPoint(strategy, budget, float(np.mean(values[chosen]))))
    return points


def count_calls(curve: list[CallsPoint], value: float, *, strategy: Strategy) -> int | None:
    """Return after how many labelled calls the chosen prompt is as good as a value; ``None``: more than were tried."""
    return next((one.num_calls for one in curve if one.strategy == strategy and one.value >= value), None)


def _try_all(outcomes: Floats, budget: int, random: np.random.Generator) -> int:
    per_prompt = budget // outcomes.shape[1]
    return _best(outcomes[_draw(len(outcomes), per_prompt, random)].mean(axis=0), random)


def _halve(outcomes: Floats, budget: int, random: np.random.Generator) -> int:
    left = np.arange(outcomes.shape[1])
    num_rounds = max(1, int(np.ceil(np.log2(len(left)))))
    totals, counts = np.zeros(len(left)), np.zeros(len(left))
    for _ in range(num_rounds):
        per_prompt = budget // (num_rounds * len(left))
        if per_prompt:
            totals[left] += outcomes[_draw(len(outcomes), per_prompt, random)][:, left].sum(axis=0)
            counts[left] += min(per_prompt, len(outcomes))
        means = totals[left] / np.maximum(counts[left], 1)
        # Ties fall by chance, not by the prompts' order.
        order = np.lexsort((random.random(len(left)), -means))
        left = left[order[: max(1, len(left) // 2)]]
    return int(left[0])


def _draw(num_queries: int, num: int, random: np.random.Generator) -> NDArray[np.intp]:
    return random.choice(num_queries, size=min(num, num_queries), replace=False)


def _best(means: Floats, random: np.random.Generator) -> int:
    best = np.flatnonzero(means == means.max())
    return int(random.choice(best))
