"""What a reward model is: four methods, and arrays that it is saved as."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import FeatureTable, Floats

Arrays = Mapping[str, NDArray[np.generic]]
"""A model as arrays by name, none of them of objects."""


class Trials(NamedTuple):
    """What a reward model learns from: rows, of which each names a query and a prompt of a feature table."""

    query_ids: NDArray[np.int32]
    prompt_ids: NDArray[np.int32]
    outcomes: Floats
    """From 0 to 1."""

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Trials":
        """Return some of the rows."""
        return Trials(self.query_ids[rows], self.prompt_ids[rows], self.outcomes[rows])


class RewardModel(Protocol):
    """Predicts outcomes from features of query and prompt (Prompt-OIRL, section 3.2)."""

    name: ClassVar[str]

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Learn from trials; equal seeds give equal models.

        Raises:
            UsageError: an extra that it needs is missing.
        """
        ...

    def predict(self, features: FeatureTable) -> Floats:
        """Return the logit of a right answer for every query with every prompt, ``(num_queries, num_prompts)``."""
        ...

    def save(self) -> Arrays:
        """Return all that it has learned."""
        ...

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the model that was saved so.

        Raises:
            KeyError: an array is missing.
            ValueError: one is not what was saved.
        """
        ...
