"""What part of the oracle's lead is luck: outcomes are draws, and the best of many looks better than it is."""

from typing import Final, NamedTuple

import numpy as np

from drpo_graph.oirl.evaluation.statistics import Doubles
from drpo_graph.oirl.features import Floats

_POINTS: Final = 41
_MOST_SPREAD: Final = 8.0
_STEPS: Final = 60


class OracleNoise(NamedTuple):
    """The oracle's lead over the best single prompt, and how much of it comes without any preference of a query."""

    oracle: float
    """Mean of the best outcome of any prompt."""
    best_single: float
    """Of the prompt with the best mean on the same queries."""
    expected: float
    """The oracle of prompts that differ in how good they are, and queries in how hard they are, and in nothing else."""

    @property
    def noise_share(self) -> float:
        """The share of the lead that such prompts and queries would show too, from 0 to 1."""
        lead = self.oracle - self.best_single
        return float(np.clip((self.expected - self.best_single) / lead, 0, 1)) if lead > 0 else float("nan")


def measure_oracle(outcomes: Floats) -> OracleNoise | None:
    """Return the oracle on the queries on which every prompt was tried; ``None`` where outcomes are not right or wrong.

    A query's difficulty is normally distributed on the logit scale, alike for all prompts; its spread is the one that
    makes the number of right answers per query vary as it does.
    """
    full = outcomes[~np.isnan(outcomes).any(axis=1)].astype(np.float64)
    if len(full) < 2 or not np.isin(full, (0.0, 1.0)).all():
        return None
    means = full.mean(axis=0)
    spread = _find_spread(means, float(full.sum(axis=1).var()))
    rates, weights = _rates(means, spread)
    expected = 1 - float(weights @ np.prod(1 - rates, axis=1))
    return OracleNoise(float(full.max(axis=1).mean()), float(means.max()), expected)


def _find_spread(means: Doubles, variance: float) -> float:
    low, high = 0.0, _MOST_SPREAD
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rates, weights = _rates(means, middle)
        totals = rates.sum(axis=1)
        mean = weights @ totals
        predicted = float(weights @ (totals - mean) ** 2 + weights @ (rates * (1 - rates)).sum(axis=1))
        low, high = (middle, high) if predicted < variance else (low, middle)
    return (low + high) / 2


def _rates(means: Doubles, spread: float) -> tuple[Doubles, Doubles]:
    """Return success rates ``(num_points, num_prompts)`` at difficulties with their weights, whose means are given."""
    points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    weights = weights / weights.sum()
    # Each prompt's level is found by halving: the mean rate rises with it.
    low, high = np.full(len(means), -40.0), np.full(len(means), 40.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rates = 1 / (1 + np.exp(-np.clip(middle[None, :] + spread * points[:, None], -60, 60)))
        is_low = weights @ rates < means
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return rates, weights
