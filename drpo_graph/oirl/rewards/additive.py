"""The simplest model: how hard the query is plus how good the prompt is."""

from typing import ClassVar, Self

import numpy as np

from drpo_graph.errors import UsageError
from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Arrays, Trials
from drpo_graph.oirl.rewards.logits import to_logits
from drpo_graph.safety.installing import tell_install

_INVERSE_PENALTY = 0.3
_MAX_ITERATIONS = 200


class AdditiveReward:
    """A logistic regression on query and prompt features: it ranks prompts alike on every query."""

    name: ClassVar[str] = "additive"

    def __init__(self, query: Floats | None = None, prompt: Floats | None = None, bias: float = 0.0) -> None:
        self._query, self._prompt, self._bias = query, prompt, bias

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Learn the weights.

        Raises:
            UsageError: scikit-learn is missing.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise UsageError(
                f"The reward model {self.name!r} needs the extra `oirl`. Run: {tell_install('oirl')}."
            ) from error
        if len(trials.outcomes) and trials.outcomes.min() == trials.outcomes.max() in (0, 1):
            self._learn_mean(features, trials)
            return
        rows = np.hstack([features.queries[trials.query_ids], features.prompts[trials.prompt_ids]])
        # An outcome between 0 and 1 counts in part for either.
        weights = np.concatenate([trials.outcomes, 1 - trials.outcomes])
        labels = np.repeat([1, 0], len(rows))
        kept = weights > 0
        learned = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MAX_ITERATIONS)
        learned.fit(np.concatenate([rows, rows])[kept], labels[kept], sample_weight=weights[kept])
        size = features.queries.shape[1]
        coefficients = learned.coef_[0].astype(np.float32)
        self._query, self._prompt, self._bias = coefficients[:size], coefficients[size:], float(learned.intercept_[0])

    def _learn_mean(self, features: FeatureTable, trials: Trials) -> None:
        """Learn one chance for all pairs: where every outcome is alike, nothing tells them apart."""
        self._query, self._prompt = (np.zeros(one.shape[1], dtype=np.float32) for one in features)
        chance = (float(trials.outcomes.sum()) + 0.5) / (len(trials.outcomes) + 1)
        self._bias = float(to_logits(np.asarray([chance]))[0])

    def predict(self, features: FeatureTable) -> Floats:
        """Return logits, ``(num_queries, num_prompts)``."""
        assert self._query is not None and self._prompt is not None, "fit comes first"  # noqa: PT018
        by_query, by_prompt = features.queries @ self._query, features.prompts @ self._prompt
        return np.asarray(by_query[:, None] + by_prompt[None, :] + self._bias, dtype=np.float32)

    def save(self) -> Arrays:
        """Return the weights."""
        assert self._query is not None and self._prompt is not None, "fit comes first"  # noqa: PT018
        return {"query": self._query, "prompt": self._prompt, "bias": np.asarray([self._bias], dtype=np.float64)}

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the model with these weights."""
        query, prompt = (np.asarray(arrays[name], dtype=np.float32) for name in ("query", "prompt"))
        return cls(query, prompt, float(arrays["bias"][0]))
