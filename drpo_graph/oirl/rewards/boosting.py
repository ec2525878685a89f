"""Boosted trees on [query features, prompt features]: XGBoost as in the paper, and LightGBM."""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import UsageError
from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Arrays, Trials
from drpo_graph.safety.installing import tell_install

_ROWS_AT_ONCE: Final = 16_384
"""So many pairs are laid out side by side; all of a large table would not fit into memory."""
_MODEL = "model"


class XGBoostReward:
    """Trees as the paper learns them: depth 10, 2,000 rounds at a rate of 0.001 (Prompt-OIRL, appendix)."""

    name: ClassVar[str] = "xgboost"
    rounds: ClassVar[int] = 2_000
    rate: ClassVar[float] = 0.001

    def __init__(self, booster: Any = None) -> None:
        self._booster = booster

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Learn the trees.

        Raises:
            UsageError: xgboost is missing.
        """
        xgboost = _import("xgboost")
        params = {"max_depth": 10, "eta": self.rate, "objective": "binary:logistic", "seed": seed}
        data = xgboost.QuantileDMatrix(_iterate(xgboost, features, trials))
        self._booster = xgboost.train(params, data, self.rounds)

    def predict(self, features: FeatureTable) -> Floats:
        """Return logits, ``(num_queries, num_prompts)``."""
        assert self._booster is not None, "fit comes first"
        parts = [self._booster.inplace_predict(rows, predict_type="margin") for rows in lay_out(features)]
        return _as_grid(parts, features)

    def save(self) -> Arrays:
        """Return the trees in XGBoost's own binary form."""
        return {_MODEL: np.frombuffer(self._booster.save_raw("ubj"), dtype=np.uint8)}

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the model of these trees."""
        xgboost = _import("xgboost")
        booster = xgboost.Booster()
        try:
            booster.load_model(bytearray(np.asarray(arrays[_MODEL], dtype=np.uint8).tobytes()))
        except xgboost.core.XGBoostError as error:
            raise ValueError(str(error)) from error
        return cls(booster)


class QuickXGBoostReward(XGBoostReward):
    """The same trees in a fortieth of the rounds at forty times the rate, which choose alike."""

    name: ClassVar[str] = "xgboost-quick"
    rounds: ClassVar[int] = 50
    rate: ClassVar[float] = 0.04


class LightGBMReward:
    """Trees that grow leaf by leaf."""

    name: ClassVar[str] = "lightgbm"

    def __init__(self, booster: Any = None) -> None:
        self._booster = booster

    def fit(self, features: FeatureTable, trials: Trials, *, seed: int) -> None:
        """Learn the trees.

        Raises:
            UsageError: lightgbm is missing.
        """
        lightgbm = _import("lightgbm")
        params = {
            "objective": "cross_entropy",
            "learning_rate": 0.1,
            "num_leaves": 31,
            "feature_fraction": 0.5,
            "seed": seed,
            "deterministic": True,
            "verbose": -1,
        }
        data = lightgbm.Dataset(_as_sequence(lightgbm, features, trials), label=trials.outcomes)
        self._booster = lightgbm.train(params, data, num_boost_round=100)

    def predict(self, features: FeatureTable) -> Floats:
        """Return logits, ``(num_queries, num_prompts)``."""
        assert self._booster is not None, "fit comes first"
        return _as_grid([self._booster.predict(rows, raw_score=True) for rows in lay_out(features)], features)

    def save(self) -> Arrays:
        """Return the trees in LightGBM's own text form."""
        return {_MODEL: np.frombuffer(self._booster.model_to_string().encode(), dtype=np.uint8)}

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Return the model of these trees."""
        lightgbm = _import("lightgbm")
        text = np.asarray(arrays[_MODEL], dtype=np.uint8).tobytes().decode()
        try:
            return cls(lightgbm.Booster(model_str=text))
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from error


def lay_out(features: FeatureTable) -> Iterator[Floats]:
    """Yield the features of every query with every prompt side by side, some thousand rows at a time."""
    num_prompts = len(features.prompts)
    step = max(1, _ROWS_AT_ONCE // max(1, num_prompts))
    for start in range(0, len(features.queries), step):
        queries = features.queries[start : start + step]
        yield np.hstack([np.repeat(queries, num_prompts, axis=0), np.tile(features.prompts, (len(queries), 1))])


def _as_grid(parts: list[NDArray[np.floating]], features: FeatureTable) -> Floats:
    shape = (len(features.queries), len(features.prompts))
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32).reshape(shape)


def _rows(features: FeatureTable, trials: Trials, place: slice | int | NDArray[np.intp]) -> Floats:
    queries, prompts = features.queries[trials.query_ids[place]], features.prompts[trials.prompt_ids[place]]
    return np.concatenate([queries, prompts], axis=-1)


def _iterate(xgboost: ModuleType, features: FeatureTable, trials: Trials) -> Any:
    """Return XGBoost's view of the rows, which hands them over some thousand at a time."""

    class Rows(xgboost.DataIter):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self._start = 0
            super().__init__()

        def next(self, input_data: Any) -> bool:
            if self._start >= len(trials.outcomes):
                return False
            part = slice(self._start, self._start + _ROWS_AT_ONCE)
            input_data(data=_rows(features, trials, part), label=trials.outcomes[part])
            self._start += _ROWS_AT_ONCE
            return True

        def reset(self) -> None:
            self._start = 0

    return Rows()


def _as_sequence(lightgbm: ModuleType, features: FeatureTable, trials: Trials) -> Any:
    """Return LightGBM's view of the rows, likewise."""

    class Rows(lightgbm.Sequence):  # type: ignore[misc,name-defined]
        batch_size = _ROWS_AT_ONCE

        def __getitem__(self, place: slice | int) -> NDArray[np.float64]:
            return _rows(features, trials, place).astype(np.float64)

        def __len__(self) -> int:
            return len(trials.outcomes)

    return Rows()


def _import(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"The reward model needs {module}. Run: {tell_install('oirl-benchmark')}.") from error
