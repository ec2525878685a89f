"""A Gaussian process on queries and prompts: for a run's few prompts, of which none is like the one to be judged.

It is no model of the catalogue: its time grows with the cube of the trials.
"""

import itertools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable
from drpo_graph.oirl.rewards.base import Trials

MAX_TRIALS: Final = 400
"""The latest are learned from: about the prompts that are at hand, and soon done."""

_PROMPT_SHARES: Final = (0.05, 0.2, 0.5)
"""Of the variance of outcomes, what prompts make out by their embeddings."""
_QUERY_SHARES: Final = (0.1, 0.3)
_WIDTH: Final = 3.0
"""How far a prompt tells about others, in units of the usual distance between prompts. That is far: of some dozens of
prompts a trend can be learned, and what is to be judged lies beyond them."""
_JOINT_SHARE: Final = 0.05
"""What a prompt makes out on queries of one kind alone."""
_SAME: Final = 1e-6
"""Squared distances below are rounding."""

Doubles = NDArray[np.float64]


class _Shape(NamedTuple):
    """Hyperparameters; what they leave of the variance is noise."""

    prompt_share: float
    query_share: float


class KernelReward:
    """Expects an outcome that is like those of similar prompts, given how hard the queries were.

    How much either counts is what makes the trials likeliest, of a few choices.
    """

    def __init__(self) -> None:
        self._known = FeatureTable(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))
        self._pairs = (np.zeros(0, np.intp), np.zeros(0, np.intp))
        self._shape = _Shape(0.0, 0.0)
        self._weights: Doubles = np.zeros(0)
        self._mean = 0.5
        self._scales = (1.0, 1.0)

    def fit(self, features: FeatureTable, trials: Trials) -> None:
        """Learn from trials, the latest of them last."""
        rows = slice(max(0, len(trials.outcomes) - MAX_TRIALS), None)
        queries, prompts = trials.query_ids[rows].astype(np.intp), trials.prompt_ids[rows].astype(np.intp)
        outcomes = trials.outcomes[rows].astype(np.float64)
        self._known, self._pairs, self._mean = features, (queries, prompts), float(outcomes.mean())
        self._scales = (
            _usual_distance(features.queries[np.unique(queries)]),
            _usual_distance(features.prompts[np.unique(prompts)]),
        )
        least = np.inf
        apart = self._measure(features, self._pairs)
        for shape in itertools.starmap(_Shape, itertools.product(_PROMPT_SHARES, _QUERY_SHARES)):
            covariance = _cover(*apart, shape)
            covariance[np.diag_indices_from(covariance)] += 1 - shape.prompt_share - shape.query_share - _JOINT_SHARE
            loss, weights = _weigh(covariance, outcomes - self._mean)
            if loss < least:
                least, self._shape, self._weights = loss, shape, weights

    def predict(self, features: FeatureTable) -> Doubles:
        """Return the expected outcome of every query with every prompt, ``(num_queries, num_prompts)``.

        Where the query is one that was learned from, what is known of it counts.
        """
        shape = (len(features.queries), len(features.prompts))
        queries, prompts = (one.ravel() for one in np.indices(shape))
        covariance = _cover(*self._measure(features, (queries, prompts)), self._shape)
        return np.clip(self._mean + covariance @ self._weights, 0.0, 1.0).reshape(shape)

    def _measure(
        self, features: FeatureTable, pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    ) -> tuple[Doubles, Doubles]:
        """Return how far the queries and the prompts of pairs are from those that were learned from.

        Squared, in units of the usual distance; ``(num_pairs, num_trials)`` each.
        """
        of_queries = _measure_squares(features.queries, self._known.queries) / self._scales[0]
        of_prompts = _measure_squares(features.prompts, self._known.prompts) / self._scales[1]
        return of_queries[np.ix_(pairs[0], self._pairs[0])], of_prompts[np.ix_(pairs[1], self._pairs[1])]


def _cover(by_query: Doubles, by_prompt: Doubles, shape: _Shape) -> Doubles:
    """Return the covariance of outcomes of pairs so far apart, without noise."""
    of_queries, of_prompts = np.exp(-by_query / 2), np.exp(-by_prompt / (2 * _WIDTH**2))
    joint = _JOINT_SHARE * of_queries * of_prompts
    return np.asarray(shape.query_share * of_queries + shape.prompt_share * of_prompts + joint)


def _measure_squares(one: NDArray[np.float32], other: NDArray[np.float32]) -> Doubles:
    """Return squared distances, ``(num_ones, num_others)``."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.asarray(np.maximum(squares, 0.0))


def _usual_distance(vectors: NDArray[np.float32]) -> float:
    """Return the median squared distance between different ones, 1 where there are none."""
    squares = _measure_squares(vectors, vectors)
    apart = squares[squares > _SAME]
    return float(np.median(apart)) if apart.size else 1.0


def _weigh(covariance: Doubles, outcomes: Doubles) -> tuple[float, Doubles]:
    """Return how unlikely outcomes are, their variance chosen to suit, and the weights that predict others."""
    weights: Doubles = np.asarray(np.linalg.solve(covariance, outcomes), dtype=np.float64)
    diagonal = np.diag(np.linalg.cholesky(covariance))
    # Outcomes that are all alike have no variance.
    variance = max(float(outcomes @ weights) / len(outcomes), 1e-12)
    return 2 * float(np.log(diagonal).sum()) + len(outcomes) * float(np.log(variance)), weights
