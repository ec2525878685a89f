"""Reward models learned on parts of the queries: together they predict, and each is tried on what it missed."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import RewardModel, Trials
from drpo_graph.oirl.rewards.catalogue import make_reward_model
from drpo_graph.oirl.rewards.logits import to_logits, to_probabilities

NUM_FOLDS: Final = 3
_MAX_STEPS: Final = 100
_ENOUGH: Final = 1e-6
_AS_IT_IS: Final = np.array([1.0, 0.0])
_PULL: Final = 1e-3
"""A faint pull to a calibration that changes nothing keeps steps finite where every logit is the same."""


class Calibration(NamedTuple):
    """Turns a model's logits into probabilities that hold: ``slope * logit + offset`` (Platt scaling)."""

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return the calibrated logits."""
        return np.asarray(self.slope * logits + self.offset, dtype=np.float32)


class Ensemble(NamedTuple):
    """Members that are averaged, and how their mean is calibrated."""

    members: Sequence[RewardModel]
    calibration: Calibration = Calibration()

    def predict(self, features: FeatureTable) -> Floats:
        """Return every member's calibrated logits, ``(num_members, num_queries, num_prompts)``."""
        return np.stack([self.calibration.apply(one.predict(features)) for one in self.members])


class CrossFit(NamedTuple):
    """An ensemble, and what it said of queries that the member asked had not seen."""

    ensemble: Ensemble
    unseen: Floats
    """Calibrated probabilities, ``(num_queries, num_prompts)``; NaN for queries without a trial."""


def cross_fit(name: str, features: FeatureTable, trials: Trials, *, seed: int, num_folds: int = NUM_FOLDS) -> CrossFit:
    """Return a model of some kind, learned ``num_folds`` times, each time without a part of the queries.

    All rows of a query are in one part, so that no member is tried on a query that it knows.

    Raises:
        UsageError: an extra is missing.
    """
    queries = np.unique(trials.query_ids)
    num_folds = min(num_folds, len(queries))
    fold_of = np.full(len(features.queries), -1)
    fold_of[queries] = np.random.default_rng(seed).permutation(np.arange(len(queries)) % max(1, num_folds))
    members: list[RewardModel] = []
    unseen = np.full((len(features.queries), len(features.prompts)), np.nan, dtype=np.float32)
    for fold in range(num_folds):
        member = make_reward_model(name)
        # A single query cannot be left out.
        kept = fold_of[trials.query_ids] != fold if num_folds > 1 else np.ones(len(trials.outcomes), dtype=np.bool_)
        member.fit(features, trials.take(kept), seed=seed * num_folds + fold)
        left_out = np.flatnonzero(fold_of == fold)
        unseen[left_out] = member.predict(features._replace(queries=features.queries[left_out]))
        members.append(member)
    calibration = calibrate(unseen[trials.query_ids, trials.prompt_ids], trials.outcomes)
    return CrossFit(Ensemble(tuple(members), calibration), to_probabilities(calibration.apply(unseen)))


def calibrate(logits: Floats, outcomes: Floats) -> Calibration:
    """Return the slope and offset that make predictions of unseen outcomes likeliest, found by Newton's steps.

    Args:
        logits: One per trial, of a model that has not seen it.
        outcomes: From 0 to 1.
    """
    x, y = logits.astype(np.float64), outcomes.astype(np.float64)
    # Platt's targets: even where all outcomes are alike, the optimum is finite.
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2)
    y = low + (high - low) * y
    design = np.stack([x, np.ones_like(x)], axis=1)
    beta = np.array([1.0, 0.0])
    loss = _lose(design, y, beta)
    for _ in range(_MAX_STEPS):
        p = to_probabilities(design @ beta).astype(np.float64)
        weights = np.maximum(p * (1 - p), 1e-9)
        gradient = design.T @ (p - y) + _PULL * (beta - _AS_IT_IS)
        hessian = (design * weights[:, None]).T @ design + _PULL * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # Far from the optimum, where a model is too sure of itself, a whole step leads beyond it and back.
        while (next_loss := _lose(design, y, beta - step)) > loss and np.abs(step).max() >= _ENOUGH:
            step /= 2
        if np.abs(step).max() < _ENOUGH:
            break
        beta, loss = beta - step, next_loss
    if beta[0] <= 0:
        # A model that ranks the wrong way round is told nothing by turning it over: the mean is all that is known.
        return Calibration(0.0, float(to_logits(np.asarray([y.mean()]))[0]))
    return Calibration(float(beta[0]), float(beta[1]))


def _lose(design: NDArray[np.float64], outcomes: NDArray[np.float64], beta: NDArray[np.float64]) -> float:
    logits = design @ beta
    cross_entropy = float((np.logaddexp(0, logits) - outcomes * logits).sum())
    return cross_entropy + _PULL / 2 * float(((beta - _AS_IT_IS) ** 2).sum())
