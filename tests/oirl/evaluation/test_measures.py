"""Intervals, fits, the oracle's noise and labelled calls, where the right answer is known."""

import numpy as np
import pytest

from drpo_graph.oirl.evaluation.labelled_calls import count_calls, measure_curve
from drpo_graph.oirl.evaluation.oracle import measure_oracle
from drpo_graph.oirl.evaluation.statistics import QueryMeans, bootstrap, measure_auc, measure_fit


def test_an_interval_holds_the_mean_and_leaves_out_what_has_no_value() -> None:
    found = bootstrap(np.array([0.0, 1.0, np.nan, 1.0, 0.0] * 50))
    assert found.mean == 0.5
    assert found.low < 0.5 < found.high
    assert np.isnan(bootstrap(np.array([np.nan])).mean)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = [bootstrap(random.normal(0, 1, 60), seed=n) for n in range(60)]
    share = np.mean([one.low <= 0 <= one.high for one in covered])
    assert share >= 0.85


def test_a_query_s_mean_is_over_the_rounds_that_had_it() -> None:
    means = QueryMeans(3)
    means.add(np.array([0, 1]), np.array([1.0, 0.0]))
    means.add(np.array([0, 1]), np.array([0.0, np.nan]))
    assert means.values[0] == 0.5
    assert means.values[1] == 0.0
    assert np.isnan(means.values[2])


@pytest.mark.parametrize(
    ("predicted", "is_right", "expected"),
    [([0.1, 0.9], [False, True], 1.0), ([0.9, 0.1], [False, True], 0.0), ([0.5, 0.5], [False, True], 0.5)],
)
def test_auc_is_how_often_right_ranks_above_wrong(
    predicted: list[float], is_right: list[bool], expected: float
) -> None:
    assert measure_auc(np.array(predicted), np.array(is_right)) == expected


def test_auc_of_one_class_is_unknown() -> None:
    assert np.isnan(measure_auc(np.array([0.1, 0.2]), np.array([True, True])))


def test_a_fit_counts_tried_pairs_alone() -> None:
    found = measure_fit(
        np.array([[0.9, 0.2], [0.8, 0.6]], dtype=np.float32), np.array([[1, 0], [0, np.nan]], dtype=np.float32)
    )
    assert (found.num_pairs, found.precision, found.recall) == (3, 0.5, 1.0)
    assert found.accuracy == pytest.approx(2 / 3)


def test_the_oracle_s_lead_is_noise_where_no_query_prefers_a_prompt() -> None:
    random = np.random.default_rng(0)
    difficulty = random.normal(0, 1.5, (6_000, 1))
    rates = 1 / (1 + np.exp(-(difficulty + np.array([-1.0, -1.2, -2.0, -1.1]))))
    found = measure_oracle((random.random(rates.shape) < rates).astype(np.float32))
    assert found is not None
    assert found.noise_share == pytest.approx(1.0, abs=0.1)


def test_the_oracle_s_lead_is_real_where_queries_prefer_prompts() -> None:
    random = np.random.default_rng(0)
    rates = np.where(np.arange(4_000)[:, None] % 2 == np.arange(2), 0.98, 0.02)
    found = measure_oracle((random.random(rates.shape) < rates).astype(np.float32))
    assert found is not None
    assert found.noise_share < 0.6


def test_more_labelled_calls_choose_better_prompts() -> None:
    random = np.random.default_rng(0)
    outcomes = (random.random((400, 4)) < np.array([0.2, 0.3, 0.4, 0.7])).astype(np.float32)
    curve = measure_curve(outcomes, seed=0)
    for strategy in ("uniform", "halving"):
        values = [one.value for one in curve if one.strategy == strategy]
        assert values[-1] > 0.65
        assert values[0] < values[-1]
    assert count_calls(curve, 0.0, strategy="uniform") == 4
    assert count_calls(curve, 0.9, strategy="uniform") is None
