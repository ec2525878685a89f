"""The ways of choosing a prompt that are compared, each as a function of what a round knows."""

import math
import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.anchors import Anchored, fit_shifts
from drpo_graph.oirl.ensemble import cross_fit
from drpo_graph.oirl.evaluation.rounds import Round, Setting
from drpo_graph.oirl.features import EmbeddedTexts, FeatureSpace, FeatureTable, Floats
from drpo_graph.oirl.gate import choose, find_best_single, learn_gate
from drpo_graph.oirl.rewards.base import RewardModel, Trials
from drpo_graph.oirl.rewards.catalogue import make_reward_model
from drpo_graph.oirl.rewards.logits import to_logits, to_probabilities

ROUTER: Final = "router"
"""The name of the rows of the abstaining router, before the reward model's."""
_PAPER_FALLBACK: Final = 0.5
BATCH_PAIRS: Final = 10_000
"""So many pairs are predicted at once where that is timed."""
_TIMINGS: Final = 20
NUM_ANCHORS: Final = 32
"""Test queries that are labelled for every held-out prompt, and then left out of the score."""


class Prediction(NamedTuple):
    """What a reward model expects on a round's test queries."""

    rewards: Floats
    """Probabilities, ``(num_test_queries, num_prompts)``."""
    train_s: float
    pair_us: float
    """Microseconds to predict one pair by itself."""
    batch_us: float
    """Per pair, ``BATCH_PAIRS`` of them at once."""


class Choices(NamedTuple):
    """A round's choices by one way of choosing: a prompt's number per test query, by set of prompts."""

    by_set: dict[str, NDArray[np.intp]]


def build_features(setting: Setting, split: Round, queries: EmbeddedTexts, prompts: EmbeddedTexts) -> FeatureTable:
    """Return the features of all queries and prompts, in a space that knows the round's training texts alone."""
    seen_queries, seen_prompts = np.unique(split.train.query_ids), np.unique(split.train.prompt_ids)
    space = FeatureSpace.learn(
        _pick(queries, seen_queries),
        _pick(prompts, seen_prompts),
        embeddings="",
        # Nobody asks this space for its model: it lives for a round.
        probe=prompts.vectors[0].tolist(),
    )
    return FeatureTable(space.of_queries(queries), space.of_prompts(prompts))


def predict_round(name: str, features: FeatureTable, split: Round) -> Prediction:
    """Return what a reward model, learned once on all training trials as in the paper, expects.

    Raises:
        UsageError: an extra is missing.
    """
    model = make_reward_model(name)
    begun = time.perf_counter()
    model.fit(features, _trials(split), seed=split.seed)
    learned = time.perf_counter()
    test = features._replace(queries=features.queries[split.test_queries])
    rewards = to_probabilities(model.predict(test))
    pair = FeatureTable(test.queries[:1], test.prompts[:1])
    num_queries = math.ceil(BATCH_PAIRS / len(test.prompts))
    batch = test._replace(queries=np.resize(test.queries, (num_queries, test.queries.shape[1])))
    return Prediction(rewards, learned - begun, _time_us(model, pair), _time_us(model, batch))


class RoutedRound(NamedTuple):
    """What the router that abstains does in a round."""

    rewards: Floats
    """Calibrated, of all its members."""
    choices: Choices
    is_open: bool
    train_s: float


def route_round(name: str, features: FeatureTable, split: Round, *, setting: Setting) -> RoutedRound:
    """Return what the abstaining router chooses: learned crosswise, with its gate.

    Among prompts that were never tried it takes the one that is expected to be best over all: nothing supports a choice
    by query there.
    """
    begun = time.perf_counter()
    fitted = cross_fit(name, features, _trials(split), seed=split.seed)
    outcomes = split.train.grid().mean
    prices = np.zeros(outcomes.shape[1], dtype=np.float32)
    trained = setting.trained
    gate = learn_gate(fitted.unseen[:, trained], outcomes[:, trained], prices=prices[trained])
    train_s = time.perf_counter() - begun
    test = features._replace(queries=features.queries[split.test_queries])
    rewards = to_probabilities(fitted.ensemble.predict(test).mean(axis=0))
    best = int(trained[gate.best])
    if gate.threshold is None:
        known = np.full(len(rewards), best)
    else:
        known = trained[choose(rewards[:, trained], best=gate.best, threshold=gate.threshold)]
    by_set = {"training": known, "all": known}
    if len(setting.held_out):
        usual = rewards[:, setting.held_out].mean(axis=0)
        by_set["held-out"] = np.full(len(rewards), setting.held_out[int(usual.argmax())])
    return RoutedRound(rewards, Choices(by_set), gate.is_open, train_s)


def choose_with_anchors(
    rewards: Floats, outcomes: Floats, *, setting: Setting, split: Round
) -> tuple[NDArray[np.intp], NDArray[np.bool_]] | None:
    """Return the held-out prompt for each test query once a few of them are labelled, and which those are.

    Args:
        rewards: What is expected, ``(num_test_queries, num_prompts)``.
        outcomes: What happened, likewise.
        setting: Names the prompts.
        split: Seeds the draw of the labelled queries.
    """
    held_out = setting.held_out
    tried = (
        np.flatnonzero(~np.isnan(outcomes[:, held_out]).any(axis=1)) if len(held_out) else np.zeros(0, dtype=np.intp)
    )
    if len(tried) < 2 * NUM_ANCHORS:
        return None
    anchors = np.random.default_rng(split.seed).choice(tried, NUM_ANCHORS, replace=False)
    logits = to_logits(rewards[:, held_out])
    shifts = fit_shifts(
        [Anchored(logits[anchors, place], outcomes[anchors, prompt]) for place, prompt in enumerate(held_out)]
    )
    is_anchor = np.zeros(len(rewards), dtype=np.bool_)
    is_anchor[anchors] = True
    return held_out[(logits + np.asarray(shifts, dtype=np.float32)).argmax(axis=1)], is_anchor


def choose_highest(values: Floats, setting: Setting) -> Choices:
    """Return the prompt of the highest value in each set (the paper's best of N)."""
    return Choices({name: prompts[values[:, prompts].argmax(axis=1)] for name, prompts in list_sets(setting).items()})


def choose_fallback(values: Floats, setting: Setting) -> Choices:
    """Return the paper's "smart" choice: a training prompt, unless all are expected to fail and another is there."""
    by_set = choose_highest(values, setting).by_set
    if not len(setting.held_out):
        return Choices({})
    fails = values[:, setting.trained].max(axis=1) < _PAPER_FALLBACK
    return Choices({"all": np.where(fails, by_set["held-out"], by_set["training"])})


def choose_single(split: Round, setting: Setting, num_queries: int) -> Choices:
    """Return the prompt that did best in training, for every query."""
    outcomes = split.train.grid().mean[:, setting.trained]
    best = setting.trained[find_best_single(outcomes, prices=np.zeros(outcomes.shape[1], dtype=np.float32))]
    return Choices({name: np.full(num_queries, best) for name in ("training", "all")})


def list_sets(setting: Setting) -> dict[str, NDArray[np.intp]]:
    """Return the sets of prompts that are chosen among, by name."""
    everything = np.concatenate([setting.trained, setting.held_out])
    sets = {"training": setting.trained, "held-out": setting.held_out, "all": everything}
    return sets if len(setting.held_out) else {"training": setting.trained}


def _time_us(model: RewardModel, features: FeatureTable) -> float:
    """Return the microseconds that predicting a pair takes, the median of some times."""
    taken = []
    for _ in range(_TIMINGS):
        begun = time.perf_counter()
        model.predict(features)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken)) * 1e6 / (len(features.queries) * len(features.prompts))


def _trials(split: Round) -> Trials:
    return Trials(split.train.query_ids, split.train.prompt_ids, split.train.outcomes)


def _pick(texts: EmbeddedTexts, numbers: NDArray[np.integer]) -> EmbeddedTexts:
    return EmbeddedTexts(tuple(texts.texts[one] for one in numbers), texts.vectors[numbers])
