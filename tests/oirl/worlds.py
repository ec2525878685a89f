"""Worlds of queries and prompts in which it is known which prompt is best for which query."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Trials
from drpo_graph.oirl.rewards.logits import to_logits, to_probabilities

SIZE = 8


class World(NamedTuple):
    """What is true: features, and how likely each prompt is right on each query."""

    features: FeatureTable
    chances: Floats
    """``(num_queries, num_prompts)``"""

    def part(self, queries: slice) -> "World":
        """Return some of its queries with all prompts."""
        return World(self.features._replace(queries=self.features.queries[queries]), self.chances[queries])


def make_world(
    random: np.random.Generator,
    *,
    num_queries: int,
    rates: NDArray[np.float64] | list[float],
    dependence: float = 0.0,
    difficulty: float = 1.0,
) -> World:
    """Return a world with one prompt per base rate.

    Args:
        random: Draws it.
        num_queries: How many.
        rates: Of each prompt, how likely it is right on a query of middling difficulty.
        dependence: How much, in logits, it depends on the query which prompt does well; 0: one is best everywhere.
        difficulty: How much, in logits, queries differ for all prompts alike.
    """
    queries = random.standard_normal((num_queries, SIZE)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    prompts = random.standard_normal((len(rates), SIZE)).astype(np.float32)
    prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
    direction = random.standard_normal(SIZE)
    logits = to_logits(np.asarray(rates, dtype=np.float64))[None, :] + difficulty * (queries @ direction)[:, None]
    if dependence:
        # Half of the queries lie on either side; so do the prompts, one after the other.
        side = np.sign(queries[:, 0])[:, None] * (1 - 2 * (np.arange(len(rates)) % 2))[None, :]
        logits = logits + dependence * side
    return World(FeatureTable(queries, prompts), to_probabilities(logits))


def draw_outcomes(world: World, random: np.random.Generator, *, num_draws: int = 1, share: float = 1.0) -> Floats:
    """Return outcomes, the mean of some draws each; NaN where a pair was not tried, which a share was."""
    outcomes = (random.binomial(num_draws, world.chances) / num_draws).astype(np.float32)
    outcomes[random.random(outcomes.shape) >= share] = np.nan
    return outcomes


def to_trials(outcomes: Floats) -> Trials:
    """Return the pairs that were tried, as rows."""
    query_ids, prompt_ids = np.nonzero(~np.isnan(outcomes))
    return Trials(query_ids.astype(np.int32), prompt_ids.astype(np.int32), outcomes[query_ids, prompt_ids])
