"""The kernel regression: what it expects of prompts that were never tried, from a few dozen trials."""

import numpy as np
import pytest

from drpo_graph.oirl.features import FeatureTable, Floats
from drpo_graph.oirl.rewards.base import Trials
from drpo_graph.oirl.rewards.kernel import MAX_TRIALS, KernelReward

SIZE = 6


def unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def make_trials(num_prompts: int, num_queries: int, *, seed: int, noise: float = 0.05) -> tuple[FeatureTable, Trials]:
    """Return trials of prompts that are the better the larger their first number is, on queries that differ."""
    random = np.random.default_rng(seed)
    features = FeatureTable(
        unit(random.normal(size=(num_queries, SIZE))),
        unit(random.normal(size=(num_prompts, SIZE))),
    )
    prompt_ids, query_ids = np.repeat(np.arange(num_prompts), 2), random.integers(num_queries, size=2 * num_prompts)
    hard = random.normal(0, 0.1, num_queries)
    outcomes = 0.5 + 0.3 * features.prompts[prompt_ids, 0] - hard[query_ids] + random.normal(0, noise, len(prompt_ids))
    trials = Trials(query_ids.astype(np.int32), prompt_ids.astype(np.int32), np.clip(outcomes, 0, 1).astype(np.float32))
    return features, trials


def test_prompt_that_was_never_tried_is_expected_to_do_as_those_like_it() -> None:
    features, trials = make_trials(30, 8, seed=0)
    model = KernelReward()
    model.fit(features, trials)
    unseen = unit(np.random.default_rng(1).normal(size=(40, SIZE)))
    expected = model.predict(features._replace(prompts=unseen)).mean(axis=0)
    assert expected.shape == (40,)
    assert np.corrcoef(expected, unseen[:, 0])[0, 1] > 0.8


def test_equal_trials_give_equal_expectations() -> None:
    features, trials = make_trials(12, 4, seed=2)
    first, second = KernelReward(), KernelReward()
    first.fit(features, trials)
    second.fit(features, trials)
    assert (first.predict(features) == second.predict(features)).all()


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_outcomes_that_are_all_alike_are_expected_again(outcome: float) -> None:
    features, trials = make_trials(8, 3, seed=3)
    model = KernelReward()
    model.fit(features, trials._replace(outcomes=np.full(16, outcome, np.float32)))
    assert model.predict(features) == pytest.approx(np.full((3, 8), outcome), abs=1e-6)


def test_one_prompt_on_one_query_is_enough_to_learn_a_mean() -> None:
    features = FeatureTable(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    model = KernelReward()
    model.fit(features, Trials(np.zeros(1, np.int32), np.zeros(1, np.int32), np.full(1, 0.25, np.float32)))
    assert model.predict(features) == pytest.approx(0.25)


def test_the_latest_trials_are_learned_from() -> None:
    features, trials = make_trials(10, 4, seed=4)
    late = Trials(*(np.resize(one, MAX_TRIALS) for one in trials))
    early = Trials(late.query_ids, late.prompt_ids, 1 - late.outcomes)
    both = Trials(*(np.concatenate(pair) for pair in zip(early, late, strict=True)))
    alone, after = KernelReward(), KernelReward()
    alone.fit(features, late)
    after.fit(features, both)
    assert (alone.predict(features) == after.predict(features)).all()
