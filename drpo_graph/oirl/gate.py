"""When a choice by query is worth it: decided on queries that the reward model had not seen."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import Floats
from drpo_graph.records import Record

THRESHOLDS: Final = (0.0, 0.02, 0.05, 0.1)
"""Expected gains beyond which another prompt than the best single one is chosen; which of them holds is learned."""
ERROR_RATE: Final = 0.05
"""How often, at most, the gate may open without a gain."""
_LEAST_WEIGHT: Final = 1.0
_MOST_WEIGHT: Final = 1000.0
"""A prompt's mean is shrunk as if by this many queries, where no difference between prompts is seen at all."""
_LEAST_DIFFERENCES: Final = 8
"""With fewer queries on which the outcomes differ, an interval means nothing."""


class Gate(Record):
    """What is known of choosing by query, against the best single prompt."""

    best: int
    """The best single prompt's number in its table."""
    threshold: float | None
    """The expected gain beyond which another prompt is chosen; ``None``: never."""
    gain: float
    """Mean gain over the best single prompt on unseen queries, price taken off, at this or the best threshold."""
    interval_low: float | None
    """Lower bound of the gain: it is higher with a probability of 95%, all thresholds considered; ``None`` where
    too few outcomes differ to say."""
    num_queries: int
    num_others: int
    """Queries for which another prompt would be chosen."""
    num_pairs: int = 0
    """Those of them on which both prompts were tried."""

    @property
    def is_open(self) -> bool:
        """Whether prompts are chosen by query."""
        return self.threshold is not None

    @property
    def reason(self) -> str:
        """What was found, in a sentence."""
        if not self.num_others:
            return "no query is expected to do better with another prompt"
        if not self.num_pairs:
            return "no query was tried under both the best single prompt and another that would be chosen for it"
        found = f"{self.gain:+.3f} on {self.num_queries} unseen queries"
        if self.interval_low is None:
            return f"no gain is certain from choosing by query ({found}, of which too few differ)"
        found += f", 95% sure of {self.interval_low:+.3f} or more"
        if self.is_open:
            return f"choosing by query gains {found}"
        return f"no gain is certain from choosing by query ({found})"


class _Trial(NamedTuple):
    threshold: float
    gain: float
    low: float | None
    num_others: int
    num_pairs: int


def learn_gate(rewards: Floats, outcomes: Floats, *, prices: Floats) -> Gate:
    """Return the gate that the evidence supports.

    The best single prompt is chosen on the same outcomes, which flatters it, never the choice by query.

    Args:
        rewards: What is predicted for queries that the model had not seen, ``(num_queries, num_prompts)``.
        outcomes: What happened, likewise; NaN where a pair was not tried.
        prices: Taken off the reward of each prompt.
    """
    tried = ~np.isnan(outcomes)
    seen = np.flatnonzero(tried.any(axis=1) & ~np.isnan(rewards).any(axis=1))
    values, worth = rewards[seen] - prices, outcomes[seen] - prices
    best = find_best_single(outcomes, prices=prices)
    trials = [_try(one, values, worth, best=best) for one in THRESHOLDS]
    surest = max(trials, key=lambda one: -np.inf if one.low is None else one.low)
    is_open = surest.low is not None and surest.low > 0
    # Where nothing is certain, what choosing freely would bring is what one wants to know.
    chosen = surest if is_open else trials[0]
    return Gate(
        best=best,
        threshold=chosen.threshold if is_open else None,
        gain=chosen.gain,
        interval_low=chosen.low,
        num_queries=len(seen),
        num_others=chosen.num_others,
        num_pairs=chosen.num_pairs,
    )


def find_best_single(outcomes: Floats, *, prices: Floats) -> int:
    """Return the prompt with the best mean outcome, price taken off; one tried little is shrunk to the mean."""
    is_tried = (~np.isnan(outcomes)).any(axis=0)
    return int(np.argmax(np.where(is_tried, shrink_means(outcomes) - prices, -np.inf)))


def shrink_means(outcomes: Floats) -> NDArray[np.float64]:
    """Return each prompt's mean outcome, shrunk to the mean of all, the more the less the prompts differ.

    It is shrunk as if by so many more queries as the variance between queries is times that between prompts, which is
    found by the method of moments (DerSimonian and Laird, 1986).
    """
    counts = (~np.isnan(outcomes)).sum(axis=0).astype(np.float64)
    overall = float(np.nanmean(outcomes))
    sums = np.nansum(outcomes, axis=0, dtype=np.float64)
    means = sums / np.maximum(counts, 1)
    weight = _weigh_queries(means, counts, squares=float(np.nansum((outcomes - means) ** 2, dtype=np.float64)))
    shrunk: NDArray[np.float64] = (sums + weight * overall) / (counts + weight)
    return shrunk


def _weigh_queries(means: NDArray[np.float64], counts: NDArray[np.float64], *, squares: float) -> float:
    """Return the variance of outcomes within prompts by that of the prompts' own means, within bounds."""
    total, tried = counts.sum(), counts > 0
    within = squares / max(1.0, total - tried.sum())
    centre = float((counts * means).sum() / total)
    spread = float((counts * (means - centre) ** 2).sum()) - within * (tried.sum() - 1)
    between = spread / max(1.0, total - float((counts**2).sum() / total))
    return float(np.clip(within / between, _LEAST_WEIGHT, _MOST_WEIGHT)) if between > 0 else _MOST_WEIGHT


def choose(values: Floats, *, best: int, threshold: float) -> NDArray[np.intp]:
    """Return, for each query, the prompt of the highest value where it beats the best single one by the threshold."""
    first = values.argmax(axis=1)
    rows = np.arange(len(values))
    return np.where(values[rows, first] - values[:, best] > threshold, first, best)


def _try(threshold: float, values: Floats, worth: Floats, *, best: int) -> _Trial:
    chosen = choose(values, best=best, threshold=threshold)
    differences = worth[np.arange(len(worth)), chosen] - worth[:, best]
    # Where it is the same prompt nothing differs, whether it was tried or not.
    differences[chosen == best] = 0.0
    known = differences[~np.isnan(differences)].astype(np.float64)
    is_other = chosen != best
    num_others, num_pairs = int(is_other.sum()), int((is_other & ~np.isnan(differences)).sum())
    gain = float(known.mean()) if known.size else 0.0
    if np.count_nonzero(known) < _LEAST_DIFFERENCES:
        return _Trial(threshold, gain, None if num_others else 0.0, num_others, num_pairs)
    error = known.std(ddof=1) / np.sqrt(known.size)
    return _Trial(threshold, gain, gain - _quantile(known.size) * float(error), num_others, num_pairs)


def _quantile(num: int) -> float:
    """Return how many standard errors bound the best of the thresholds' gains from below."""
    from scipy.stats import t  # Slow to load.

    return float(t.ppf(1 - ERROR_RATE / len(THRESHOLDS), num - 1))
