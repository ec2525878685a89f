"""Reward models learned on parts of the queries: together they predict, and each is tried on what it missed."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import RewardModel, Trials
from drpo_graph.oirl.rewards.catalogue import make_reward_model
from drpo_graph.oirl.rewards.logits import to_probabilities

NUM_FOLDS: Final = 3
_MAX_STEPS: Final = 100
_ENOUGH: Final = 1e-6


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
    for _ in range(_MAX_STEPS):
        p = to_probabilities(design @ beta).astype(np.float64)
        weights = np.maximum(p * (1 - p), 1e-9)
        # A faint pull to (1, 0) keeps the step finite where every logit is the same.
        gradient = design.T @ (p - y) + 1e-3 * (beta - [1.0, 0.0])
        hessian = (design * weights[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta = beta - np.clip(step, -2, 2)
        if np.abs(step).max() < _ENOUGH:
            break
    # A model that ranks the wrong way round is told nothing by turning it over: it is trusted no more than the mean.
    return Calibration(max(float(beta[0]), 0.0), float(beta[1]))
