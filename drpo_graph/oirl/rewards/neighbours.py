"""Nearest neighbours: what each prompt did on the queries most like this one."""

from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Arrays, Trials
from drpo_graph.oirl.rewards.logits import to_logits

_CHOICES: Final = (10, 30, 100, 300)
"""Numbers of neighbours that are compared on a part of the queries that is held back."""
_PRIOR: Final = 5.0
"""As many trials count a prompt's mean on all queries."""
_HELD_BACK: Final = 0.2
_MAX_HELD_BACK: Final = 1_000
_QUERIES_AT_ONCE: Final = 256
_TEMPERATURE: Final = 0.1
"""Of the weights by which an unseen prompt is likened to those that were tried."""


class NeighboursReward:
    """Averages over the nearest queries, shrunk to the prompt's own mean; how many is chosen on queries held back.

    An unseen prompt is predicted as a mean of the tried ones, weighted by the likeness of their embeddings.
    """

    name: ClassVar[str] = "neighbours"

    def __init__(
        self,
        num_neighbours: int | None = None,
        *,
        queries: Floats | None = None,
        prompts: Floats | None = None,
        means: Floats | None = None,
        counts: Floats | None = None,
    ) -> None:
        self._num_neighbours = num_neighbours
        self._queries, self._prompts = queries, prompts
        self._means, self._counts = means, counts
        """``(num_queries, num_prompts)``: mean outcome, 0 where untried, and number of trials."""

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Keep the queries with their outcomes."""
        queries, query_rows = np.unique(trials.query_ids, return_inverse=True)
        prompts, prompt_rows = np.unique(trials.prompt_ids, return_inverse=True)
        shape = (len(queries), len(prompts))
        pairs = query_rows.astype(np.int64) * shape[1] + prompt_rows
        counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        totals = np.bincount(pairs, weights=trials.outcomes, minlength=shape[0] * shape[1]).reshape(shape)
        self._counts = counts.astype(np.float32)
        self._means = (totals / np.maximum(counts, 1)).astype(np.float32)
        self._queries, self._prompts = features.queries[queries], features.prompts[prompts]
        if self._num_neighbours is None:
            self._num_neighbours = self._choose_number(np.random.default_rng(seed))

    def predict(self, features: FeatureTable) -> Floats:
        """Return logits, ``(num_queries, num_prompts)``."""
        assert self._queries is not None, "fit comes first"
        assert self._num_neighbours is not None, "fit comes first"
        everyone = np.arange(len(self._queries))
        by_tried = self._average(features.queries, everyone, (self._num_neighbours,))[0]
        return to_logits(by_tried @ self._liken(features.prompts))

    def save(self) -> Arrays:
        """Return the queries with their outcomes."""
        assert self._queries is not None and self._prompts is not None  # noqa: PT018
        assert self._means is not None and self._counts is not None  # noqa: PT018
        return {
            "num_neighbours": np.asarray([self._num_neighbours], dtype=np.int32),
            "queries": self._queries,
            "prompts": self._prompts,
            "means": self._means,
            "counts": self._counts,
        }

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the model of these queries."""
        queries, prompts, means, counts = (
            np.asarray(arrays[name], dtype=np.float32) for name in ("queries", "prompts", "means", "counts")
        )
        if means.shape != (len(queries), len(prompts)) or counts.shape != means.shape:
            raise ValueError("its tables do not fit each other")
        number = int(arrays["num_neighbours"][0])
        return cls(number, queries=queries, prompts=prompts, means=means, counts=counts)

    def _choose_number(self, random: np.random.Generator) -> int:
        """Return the number whose predictions of held-back outcomes lose the least, by squared error."""
        assert self._queries is not None and self._means is not None and self._counts is not None  # noqa: PT018
        order = random.permutation(len(self._queries))
        num_held = min(_MAX_HELD_BACK, int(len(order) * _HELD_BACK))
        held, kept = order[:num_held], order[num_held:]
        choices = [one for one in _CHOICES if one <= len(kept)]
        if not num_held or not choices:
            return max(1, min(_CHOICES[0], len(order)))
        predicted = self._average(self._queries[held], kept, choices)
        weights = self._counts[held]
        losses = [float((weights * (one - self._means[held]) ** 2).sum()) for one in predicted]
        return choices[int(np.argmin(losses))]

    def _average(
        self, queries: Floats, among: NDArray[np.intp], numbers: tuple[int, ...] | list[int]
    ) -> list[NDArray[np.float64]]:
        """Return, for each number of neighbours, the shrunk mean outcome of every tried prompt."""
        assert self._queries is not None and self._means is not None and self._counts is not None  # noqa: PT018
        known, counts = self._queries[among], self._counts[among]
        totals = self._means[among] * counts
        overall = totals.sum() / max(1.0, counts.sum())
        prior = (totals.sum(axis=0) + overall) / (counts.sum(axis=0) + 1)
        squares = (known**2).sum(axis=1)
        most = min(max(numbers), len(known))
        averages = [np.empty((len(queries), counts.shape[1])) for _ in numbers]
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            # The query's own square is the same for all and left out.
            distances = squares - 2 * queries[part] @ known.T
            near = np.argpartition(distances, most - 1, axis=1)[:, :most]
            near = np.take_along_axis(near, np.argsort(np.take_along_axis(distances, near, 1), axis=1), 1)
            for average, number in zip(averages, numbers, strict=True):
                found = near[:, :number]
                weight = counts[found].sum(axis=1)
                average[part] = (totals[found].sum(axis=1) + _PRIOR * prior) / (weight + _PRIOR)
        return averages

    def _liken(self, prompts: Floats) -> NDArray[np.float64]:
        """Return weights ``(num_tried, num_prompts)`` that sum to 1 for each prompt; a tried prompt is itself alone."""
        assert self._prompts is not None, "fit comes first"
        distances = ((self._prompts[:, None, :] - prompts[None, :, :]) ** 2).sum(axis=2).astype(np.float64)
        nearest = distances.min(axis=0)
        weights = np.exp(-(distances - nearest) / (2 * _TEMPERATURE))
        weights[:, nearest < 1e-9] = distances[:, nearest < 1e-9] < 1e-9
        shares: NDArray[np.float64] = weights / weights.sum(axis=0)
        return shares
