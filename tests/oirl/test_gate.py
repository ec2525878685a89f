"""When a choice by query is worth it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from drpo_graph.oirl.ensemble import cross_fit
from drpo_graph.oirl.features import Floats
from drpo_graph.oirl.gate import THRESHOLDS, Gate, choose, find_best_single, learn_gate, shrink_means
from drpo_graph.oirl.rewards.logits import to_probabilities
from tests.oirl.worlds import draw_outcomes, make_world, to_trials

NUM_FRESH = 500


def grid(*rows: Sequence[float]) -> Floats:
    return np.asarray(rows, dtype=np.float32)


def learn(rewards: Floats, outcomes: Floats, *, prices: Sequence[float] | None = None) -> Gate:
    return learn_gate(rewards, outcomes, prices=np.asarray(prices or [0.0] * outcomes.shape[1], dtype=np.float32))


class Seen(NamedTuple):
    """What a gate did in one world."""

    is_open: bool
    gain: float
    """True mean gain over the best single prompt that it names, on fresh queries."""
    is_worse: bool
    """Whether drawn outcomes on fresh queries are significantly worse than that prompt's."""


def try_world(seed: int, *, num_queries: int, dependence: float, reward_model: str) -> Seen:
    """Learn in one of many kinds of worlds: few prompts and many, ties and gaps, single draws and means, holes."""
    random = np.random.default_rng([seed, num_queries])
    num_prompts, base = int(random.integers(2, 9)), random.uniform(0.05, 0.9)
    spread = (0.0, 0.01, 0.05, 0.15)[seed % 4]
    world = make_world(
        random,
        num_queries=num_queries + NUM_FRESH,
        rates=np.clip(base + spread * random.standard_normal(num_prompts), 0.02, 0.98),
        dependence=dependence,
        difficulty=(0.0, 1.0, 3.0)[seed % 3],
    )
    known, fresh = world.part(slice(0, num_queries)), world.part(slice(num_queries, None))
    outcomes = draw_outcomes(known, random, num_draws=(1, 1, 5)[seed // 4 % 3], share=(1.0, 0.5)[seed // 12 % 2])
    fitted = cross_fit(reward_model, known.features, to_trials(outcomes), seed=seed)
    gate = learn(fitted.unseen, outcomes)
    if gate.threshold is None:
        return Seen(False, 0.0, False)
    values = to_probabilities(fitted.ensemble.predict(fresh.features).mean(axis=0))
    chosen = choose(values, best=gate.best, threshold=gate.threshold)
    rows, drawn = np.arange(NUM_FRESH), draw_outcomes(fresh, random)
    differences = drawn[rows, chosen] - drawn[:, gate.best]
    is_worse = bool(differences.any() and stats.ttest_1samp(differences, 0, alternative="less").pvalue < 0.05)
    gain = float((fresh.chances[rows, chosen] - fresh.chances[:, gate.best]).mean())
    return Seen(True, gain, is_worse)


def share(of: Sequence[bool]) -> float:
    return sum(of) / len(of)


def tell(name: str, seen: Sequence[Seen]) -> str:
    opened = [one.gain for one in seen if one.is_open]
    return (
        f"{name}, {len(seen)} worlds: open in {len(opened) / len(seen):.1%}, without a gain in "
        f"{share([one.is_open and one.gain <= 0 for one in seen]):.1%}, significantly worse in "
        f"{share([one.is_worse for one in seen]):.1%}; mean gain {np.mean([one.gain for one in seen]):+.3f}, "
        f"where open {np.mean(opened or [0.0]):+.3f}"
    )


MANY = {20: 120, 60: 120, 300: 120, 1_000: 40}
FEW = {20: 6, 60: 6, 300: 6}


@pytest.mark.parametrize(("reward_model", "worlds_by_size"), [("neighbours", MANY), ("additive", FEW)])
def test_where_one_prompt_is_best_for_all_queries_choosing_by_query_does_no_harm(
    reward_model: str, worlds_by_size: dict[int, int]
) -> None:
    seen = [
        try_world(seed, num_queries=size, dependence=0.0, reward_model=reward_model)
        for size, num_worlds in worlds_by_size.items()
        for seed in range(num_worlds)
    ]
    print(tell(f"{reward_model}, one prompt best", seen))
    assert share([one.is_worse for one in seen]) <= 0.05
    assert share([one.is_open and one.gain <= 0 for one in seen]) <= 0.05


@pytest.mark.parametrize(
    ("dependence", "num_queries", "is_certain"), [(1.0, 300, False), (1.0, 1_000, True), (2.0, 300, True)]
)
def test_where_the_best_prompt_depends_on_the_query_choosing_gains(
    dependence: float, num_queries: int, is_certain: bool
) -> None:
    worlds = range(60 if num_queries < 1_000 else 12)
    seen = [
        try_world(seed, num_queries=num_queries, dependence=dependence, reward_model="neighbours") for seed in worlds
    ]
    print(tell(f"dependence {dependence}, {num_queries} queries", seen))
    assert share([one.is_worse for one in seen]) <= 0.05
    assert share([one.is_open and one.gain <= 0 for one in seen]) <= 0.05
    assert np.mean([one.gain for one in seen]) > 0.02
    assert share([one.is_open for one in seen]) > (0.6 if is_certain else 0.2)


@pytest.mark.parametrize("num_prompts", [2, 6])
def test_predictions_that_know_nothing_open_the_gate_in_at_most_five_percent(num_prompts: int) -> None:
    num_open = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        outcomes = random.binomial(1, 0.5, (200, num_prompts)).astype(np.float32)
        num_open += learn(random.random(outcomes.shape).astype(np.float32), outcomes).is_open
    assert num_open <= 0.05 * 400


def test_the_interval_holds_where_the_best_prompt_is_known_beforehand() -> None:
    num_over = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        # The first prompt stays the best one: on queries that are not predicted it is always right.
        outcomes = random.binomial(1, 0.5, (400, 3)).astype(np.float32)
        outcomes[200:] = [1.0, 0.0, 0.0]
        rewards = random.random(outcomes.shape).astype(np.float32)
        rewards[200:] = np.nan
        gate = learn(rewards, outcomes)
        assert gate.best == 0
        assert gate.interval_low is not None
        num_over += gate.interval_low > 0
    # Without a correction for four thresholds it would be more than twice as many.
    assert 0 < num_over <= 0.05 * 400


def test_a_sure_gain_opens_the_gate_and_is_told() -> None:
    random = np.random.default_rng(0)
    right = random.integers(0, 2, 200)
    outcomes = np.eye(2, dtype=np.float32)[right]
    gate = learn(0.5 + 0.4 * (outcomes - 0.5), outcomes)
    assert gate.threshold in THRESHOLDS
    assert (gate.best, gate.num_queries) == (int(right.mean() > 0.5), 200)
    assert gate.gain == pytest.approx(1 - outcomes.mean(axis=0).max())
    assert gate.interval_low is not None
    assert 0.3 < gate.interval_low < gate.gain
    assert gate.reason == (
        f"choosing by query gains {gate.gain:+.3f} on 200 unseen queries, 95% sure of {gate.interval_low:+.3f} or more"
    )


def test_predictions_that_rank_the_wrong_way_round_keep_the_gate_closed() -> None:
    outcomes = np.eye(2, dtype=np.float32)[np.random.default_rng(0).integers(0, 2, 200)]
    gate = learn(1 - outcomes, outcomes)
    assert not gate.is_open
    assert gate.gain < 0
    assert "no gain is certain from choosing by query (-0." in gate.reason


@pytest.mark.parametrize("num_queries", [1, 7, 10])
def test_few_queries_on_which_outcomes_differ_open_no_gate(num_queries: int) -> None:
    # The best prompt is right on all but seven of them at most.
    right = np.arange(num_queries) < min(7, num_queries)
    outcomes = np.stack([~right, right], axis=1).astype(np.float32)
    outcomes = np.concatenate([outcomes, np.tile(grid([1, 0]), (20, 1))])
    gate = learn(outcomes, outcomes)
    assert (gate.best, gate.is_open, gate.interval_low) == (0, False, None)
    assert gate.reason.endswith("unseen queries, of which too few differ)")
    assert Gate.model_validate_json(gate.model_dump_json()) == gate


def test_where_no_other_prompt_is_expected_to_do_better_that_is_said() -> None:
    gate = learn(np.tile(grid([0.6, 0.5]), (20, 1)), np.tile(grid([1, 0]), (20, 1)))
    assert (gate.is_open, gate.num_others, gate.gain, gate.interval_low) == (False, 0, 0.0, 0.0)
    assert gate.reason == "no query is expected to do better with another prompt"
    alone = learn(grid([0.5]), grid([1]))
    assert (alone.best, alone.is_open, alone.num_others) == (0, False, 0)


def test_queries_that_were_not_predicted_or_not_tried_do_not_count() -> None:
    nan = float("nan")
    outcomes = grid([1, 0], [nan, nan], [0, 1], [nan, 1])
    gate = learn(grid([0.5, 0.4], [0.1, 0.9], [nan, nan], [0.1, 0.9]), outcomes)
    assert (gate.num_queries, gate.num_others) == (2, 1)


def test_a_price_is_taken_off_both_what_is_expected_and_what_happened() -> None:
    outcomes = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    cheap = learn(outcomes, outcomes)
    dear = learn(outcomes, outcomes, prices=[0.0, 0.9])
    assert (dear.best, dear.is_open) == (0, True)
    assert dear.gain == pytest.approx(cheap.gain - 0.45)
    dearest = learn(outcomes, outcomes, prices=[0.0, 1.0])
    assert (dearest.best, dearest.is_open, dearest.num_others) == (0, False, 0)


def test_a_prompt_twice_as_long_loses_where_rewards_are_equal() -> None:
    outcomes = np.tile(grid([1, 1, 0], [0, 0, 0], [1, 1, 1]), (40, 1))
    assert find_best_single(outcomes, prices=np.asarray([0.02, 0.01, 0.0], dtype=np.float32)) == 1


def test_a_prompt_that_was_tried_once_does_not_beat_one_that_was_tried_often() -> None:
    outcomes = np.full((20, 3), np.nan, dtype=np.float32)
    outcomes[:, 0] = [1] * 18 + [0] * 2
    outcomes[:, 1] = [1] * 6 + [0] * 14
    outcomes[0, 2] = 1
    assert find_best_single(outcomes, prices=np.zeros(3, dtype=np.float32)) == 0


def test_a_prompt_that_was_tried_a_few_times_does_not_beat_one_as_good_that_was_tried_often() -> None:
    draw = np.random.default_rng(3)
    outcomes = np.full((400, 5), np.nan, dtype=np.float32)
    outcomes[:, :3] = draw.random((400, 3)) < np.asarray([0.6, 0.55, 0.5])
    outcomes[:1, 3], outcomes[:3, 4] = 1, 1
    assert find_best_single(outcomes, prices=np.zeros(5, dtype=np.float32)) == 0


def test_means_are_left_where_prompts_differ_by_much_and_drawn_together_where_they_do_not() -> None:
    far = np.repeat([[0.1, 0.9]], 50, axis=0).astype(np.float32)
    far[::2] -= 0.1
    assert shrink_means(far) == pytest.approx(far.mean(axis=0), abs=0.02)
    near = (np.arange(50)[:, None] % 2 == [0, 1]).astype(np.float32)
    near[0] = 0
    assert np.ptp(shrink_means(near)) < np.ptp(near.mean(axis=0)) / 10


def test_a_prompt_that_was_never_tried_is_not_the_best() -> None:
    outcomes = np.asarray([[np.nan, 0.0], [np.nan, 0.5]], dtype=np.float32)
    assert find_best_single(outcomes, prices=np.asarray([0.0, 5.0], dtype=np.float32)) == 1


def test_another_prompt_is_chosen_only_beyond_the_threshold() -> None:
    values = grid([0.5, 0.6, 0.55], [0.5, 0.75, 0.9], [0.5, 0.5, 0.1])
    chosen: NDArray[np.intp] = choose(values, best=0, threshold=0.25)
    assert chosen.tolist() == [0, 2, 0]
    assert choose(values, best=0, threshold=0.0).tolist() == [1, 2, 0]
