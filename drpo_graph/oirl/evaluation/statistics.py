"""Intervals over queries, and how well predicted outcomes fit what happened."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import Floats
from drpo_graph.records import Record

NUM_RESAMPLES: Final = 2_000
_MOST_KEPT: Final = 10_000
"""So many queries' resamples take 80 MB, and are kept from one interval to the next."""
_PARTS: Final = 20
_NUM_BINS: Final = 10
_HALF: Final = 0.5

Doubles = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its 95% bootstrap interval over queries; NaN where there is nothing to average."""

    mean: float
    low: float
    high: float

    @property
    def is_above_zero(self) -> bool:
        """Whether all of it lies above zero."""
        return self.low > 0


def bootstrap(values: Doubles, *, seed: int = 0) -> Interval:
    """Return the mean over queries; queries of NaN have no value and are left out.

    Equal seeds and numbers of queries give equal resamples: what is paired stays so.
    """
    is_known = ~np.isnan(values)
    if not is_known.any():
        return Interval(np.nan, np.nan, np.nan)
    columns = np.stack([np.where(is_known, values, 0.0), is_known], axis=1).astype(np.float32)
    totals = np.concatenate([weights @ columns for weights in _resample(len(values), seed)])
    # A resample without any known query is possible where few are.
    means = totals[totals[:, 1] > 0]
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return Interval(float(values[is_known].mean()), float(low), float(high))


def _resample(num_queries: int, seed: int) -> Iterator[Floats]:
    """Yield how often each query is drawn in each resample, some resamples at a time: all would fill the memory."""
    if num_queries <= _MOST_KEPT:
        yield _draw_weights(num_queries, NUM_RESAMPLES, seed)
        return
    for part in range(_PARTS):
        yield _draw_weights.__wrapped__(num_queries, NUM_RESAMPLES // _PARTS, seed + part)


@lru_cache(maxsize=4)
def _draw_weights(num_queries: int, num_resamples: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(random.integers(0, num_queries, num_queries), minlength=num_queries) for _ in range(num_resamples)]
    ).astype(np.float32)


class QueryMeans:
    """Averages values over rounds query by query: a round has only some of the queries."""

    def __init__(self, num_queries: int) -> None:
        self._totals, self._counts = np.zeros(num_queries), np.zeros(num_queries)

    def add(self, queries: NDArray[np.intp], values: Doubles) -> None:
        """Add a round's values; NaN stands for none."""
        known = ~np.isnan(values)
        np.add.at(self._totals, queries[known], values[known])
        np.add.at(self._counts, queries[known], 1)

    @property
    def values(self) -> Doubles:
        """Each query's mean; NaN where it had no value."""
        found: Doubles = np.where(self._counts > 0, self._totals / np.maximum(self._counts, 1), np.nan)
        return found


class Fit(Record):
    """How well predicted probabilities fit outcomes, as a classifier at one half and as probabilities."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    brier: float
    """Mean squared error."""
    calibration_error: float
    """Mean distance between what was predicted and what happened, over ten groups of equal size."""
    num_pairs: int


FIT_NUMBERS: Final = tuple(name for name in Fit.model_fields if name != "num_pairs")
"""The fields that can be averaged."""


def measure_fit(predicted: Floats, outcomes: Floats) -> Fit:
    """Return how predictions fit the outcomes of the pairs that were tried.

    Args:
        predicted: Probabilities.
        outcomes: Likewise shaped; NaN where a pair was not tried. One above one half counts as right.
    """
    tried = ~np.isnan(outcomes)
    p, y = predicted[tried].astype(np.float64), outcomes[tried].astype(np.float64)
    if not y.size:
        return Fit(**dict.fromkeys(FIT_NUMBERS, float("nan")), num_pairs=0)
    is_right, said_right = y > _HALF, p > _HALF
    hits = float((is_right & said_right).sum())
    precision = hits / said_right.sum() if said_right.any() else 0.0
    recall = hits / is_right.sum() if is_right.any() else 0.0
    return Fit(
        accuracy=float((is_right == said_right).mean()),
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * precision * recall / (precision + recall)) if hits else 0.0,
        auc=measure_auc(p, is_right),
        brier=float(((p - y) ** 2).mean()),
        calibration_error=float(np.average([abs(one.predicted - one.found) for one in group_predictions(p, y)])),
        num_pairs=int(y.size),
    )


def measure_auc(predicted: Doubles, is_right: NDArray[np.bool_]) -> float:
    """Return how often a right pair was predicted above a wrong one, ties counting half; NaN with one class alone."""
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return float("nan")
    _, place, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[is_right].sum() - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


class Group(NamedTuple):
    """Pairs of like predictions."""

    predicted: float
    found: float
    num_pairs: int


def group_predictions(predicted: Doubles, outcomes: Doubles) -> list[Group]:
    """Return ten groups of equal size, from the lowest prediction to the highest."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, _NUM_BINS) if part.size]
    return [Group(float(predicted[one].mean()), float(outcomes[one].mean()), int(one.size)) for one in parts]
