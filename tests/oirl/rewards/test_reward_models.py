"""What holds for every reward model."""

from typing import Any

import numpy as np
import pytest

from drpo_graph.errors import UsageError
from drpo_graph.oirl.ensemble import Calibration, Ensemble, calibrate, cross_fit
from drpo_graph.oirl.features import FeatureTable
from drpo_graph.oirl.rewards.base import RewardModel, Trials
from drpo_graph.oirl.rewards.catalogue import REWARD_MODELS, load_reward_model, make_reward_model
from drpo_graph.oirl.rewards.logits import to_logits, to_probabilities
from drpo_graph.oirl.rewards.network import NetworkReward, NetworkSettings
from tests.oirl.worlds import SIZE, World, draw_outcomes, make_world, to_trials

_NEEDED = {
    "network": "torch",
    "neighbours": None,
    "additive": None,
    "lightgbm": "lightgbm",
    "xgboost-quick": "xgboost",
    "xgboost": "xgboost",
}
_QUICK = ("neighbours", "additive")


def name_models() -> list[Any]:
    """Return the names of all reward models; those that are slow to learn, or to load, are marked so."""
    return [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow, id=name) for name in REWARD_MODELS]


# The published settings of XGBoost take minutes; the quick ones are the same class.
every_model = pytest.mark.parametrize("name", [one for one in name_models() if one.id != "xgboost"])


@pytest.fixture(autouse=True)
def _skip_where_absent(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if needed := _NEEDED.get(name):
        pytest.importorskip(needed)


def world(num_queries: int = 60, *, dependence: float = 2.0, seed: int = 0) -> World:
    rates = [0.5, 0.5, 0.6, 0.4]
    return make_world(
        np.random.default_rng(seed), num_queries=num_queries, rates=rates, dependence=dependence, difficulty=1.0
    )


def trials_of(some: World, *, share: float = 1.0, num_draws: int = 1) -> Trials:
    return to_trials(draw_outcomes(some, np.random.default_rng(1), share=share, num_draws=num_draws))


def fit(name: str, some: World, trials: Trials | None = None, *, seed: int = 0) -> RewardModel:
    model = make_reward_model(name)
    model.fit(some.features, trials_of(some) if trials is None else trials, seed=seed)
    return model


def test_what_each_model_needs_is_known_here() -> None:
    assert list(REWARD_MODELS) == list(_NEEDED)


def test_a_model_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="There is no reward model 'forest': expected one of network, neighbours"):
        make_reward_model("forest")


@pytest.mark.parametrize("name", name_models())
def test_a_model_that_was_saved_and_loaded_predicts_the_same(name: str) -> None:
    some = world()
    model = fit(name, some)
    arrays = model.save()
    assert all(one.dtype != object for one in arrays.values())
    loaded = load_reward_model(name, {key: value.copy() for key, value in arrays.items()})
    np.testing.assert_array_equal(loaded.predict(some.features), model.predict(some.features))
    assert {key: value.tobytes() for key, value in loaded.save().items()} == {
        key: value.tobytes() for key, value in arrays.items()
    }


@every_model
def test_equal_seeds_learn_equal_models(name: str) -> None:
    some = world()
    trials = trials_of(some, share=0.7)
    first, second = (fit(name, some, trials, seed=3).predict(some.features) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@every_model
def test_outcomes_between_right_and_wrong_are_learned_from(name: str) -> None:
    some = world()
    found = fit(name, some, trials_of(some, num_draws=3)).predict(some.features)
    assert found.shape == some.chances.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@every_model
def test_unseen_queries_and_prompts_are_predicted(name: str) -> None:
    model, other = fit(name, world()), world(7, seed=5)
    found = model.predict(other.features)
    assert found.shape == other.chances.shape
    assert np.isfinite(found).all()
    assert model.predict(other.features._replace(prompts=other.features.prompts[:1])).shape == (7, 1)
    one = model.predict(FeatureTable(other.features.queries[:1], other.features.prompts))
    np.testing.assert_allclose(one, found[:1], atol=1e-4)
    assert model.predict(FeatureTable(other.features.queries[:0], other.features.prompts)).shape == (0, 4)


@every_model
def test_a_single_query_or_prompt_or_trial_is_enough_to_learn_from(name: str) -> None:
    some = world(30)
    for kept in (
        lambda trials: trials.query_ids == 3,
        lambda trials: trials.prompt_ids == 2,
        lambda trials: np.arange(len(trials.outcomes)) == 5,
    ):
        trials = trials_of(some)
        found = fit(name, some, trials.take(kept(trials))).predict(some.features)
        assert found.shape == some.chances.shape
        assert np.isfinite(found).all()


@every_model
@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_outcomes_that_are_all_alike_are_what_is_predicted(name: str, outcome: float) -> None:
    some = world(30)
    trials = trials_of(some)
    trials = trials._replace(outcomes=np.full_like(trials.outcomes, outcome))
    found = to_probabilities(fit(name, some, trials).predict(some.features))
    assert np.isfinite(found).all()
    assert np.abs(found - outcome).mean() < 0.5
    if outcome != 0.5:
        assert np.abs(found - outcome).mean() < np.abs(found - (1 - outcome)).mean()


@every_model
def test_repeated_trials_count_as_often_as_they_were_made(name: str) -> None:
    some = world(30)
    trials = Trials(
        np.repeat(np.arange(30), 200).astype(np.int32),
        np.zeros(6_000, dtype=np.int32),
        np.tile([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 600).astype(np.float32),
    )
    found = to_probabilities(fit(name, some, trials).predict(some.features))[:, 0]
    assert 0.6 < found.mean() <= 1


@every_model
def test_arrays_that_are_missing_or_not_a_models_are_told(name: str) -> None:
    arrays = fit(name, world()).save()
    for missing in arrays:
        with pytest.raises((KeyError, ValueError)):
            load_reward_model(name, {key: value for key, value in arrays.items() if key != missing})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
        for name in ("network", "neighbours", "lightgbm", "xgboost-quick")
    ],
)
def test_where_the_best_prompt_depends_on_the_query_it_is_found_more_often_than_by_chance(name: str) -> None:
    some = world(1_200)
    known, fresh = some.part(slice(0, 900)), some.part(slice(900, None))
    found = fit(name, known).predict(fresh.features)
    chosen = fresh.chances[np.arange(300), found.argmax(axis=1)].mean()
    single = fresh.chances.mean(axis=0).max()
    oracle = fresh.chances.max(axis=1).mean()
    assert chosen > single + 0.3 * (oracle - single)


@every_model
def test_a_prompt_that_is_better_everywhere_is_found(name: str) -> None:
    some = make_world(np.random.default_rng(0), num_queries=300, rates=[0.2, 0.8, 0.4])
    found = fit(name, some).predict(some.features)
    assert (found.argmax(axis=1) == 1).mean() > 0.75


@pytest.mark.slow
def test_the_network_does_not_change_what_others_draw() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    fit("network", world())
    assert torch.rand(3).tolist() == expected


@pytest.mark.slow
def test_a_network_of_other_sizes_is_saved_with_them() -> None:
    pytest.importorskip("torch")
    some = world()
    model = NetworkReward(NetworkSettings(hidden=(5, 3), min_epochs=1, min_steps=1))
    model.fit(some.features, trials_of(some), seed=0)
    arrays = model.save()
    assert arrays["second"].shape == (5, 3)
    np.testing.assert_array_equal(NetworkReward.load(arrays).predict(some.features), model.predict(some.features))
    with pytest.raises(ValueError, match="do not fit"):
        NetworkReward.load({**arrays, "last": np.zeros(4, dtype=np.float32)})


def test_neighbours_whose_tables_do_not_fit_are_told() -> None:
    arrays = fit("neighbours", world()).save()
    with pytest.raises(ValueError, match="do not fit"):
        load_reward_model("neighbours", {**arrays, "means": np.zeros((3, 3), dtype=np.float32)})


def test_neighbours_know_what_prompts_did_on_the_same_query_and_liken_unseen_prompts() -> None:
    queries = np.repeat(np.eye(SIZE, dtype=np.float32)[:2], 20, axis=0)
    prompts = np.eye(SIZE, dtype=np.float32)[:2]
    outcomes = np.where((np.arange(40) < 20)[:, None], [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    model = make_reward_model("neighbours")
    model.fit(FeatureTable(queries, prompts), to_trials(outcomes), seed=0)
    found = model.predict(FeatureTable(queries[[0, 39]], np.vstack([prompts, prompts[:1] + 0.01])))
    assert found[0, 0] > 0 > found[0, 1]
    assert found[1, 1] > 0 > found[1, 0]
    np.testing.assert_allclose(found[:, 2], found[:, 0], atol=0.1)


def test_logits_and_probabilities_are_each_others_inverse_and_finite() -> None:
    found = to_logits(np.array([0.0, 0.25, 0.5, 1.0]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(to_probabilities(found), [1e-4, 0.25, 0.5, 1 - 1e-4], atol=1e-6)
    assert np.isfinite(to_probabilities(np.array([-1e9, 1e9]))).all()


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_calibration_of_outcomes_that_are_all_alike_is_finite(outcome: float) -> None:
    found = calibrate(np.linspace(-3, 3, 50, dtype=np.float32), np.full(50, outcome, dtype=np.float32))
    assert np.isfinite(found).all()
    assert (found.offset > 0) == (outcome == 1)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 1.0), (30.0, 20.0), (0.1, -2.0), (1.0, 0.0)])
def test_a_calibration_takes_back_what_a_model_is_too_sure_or_too_modest_of(factor: float, shift: float) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(5_000).astype(np.float32)
    outcomes = random.binomial(1, to_probabilities(logits)).astype(np.float32)
    found = calibrate(factor * logits + np.float32(shift), outcomes)
    assert found.slope * factor == pytest.approx(1, abs=0.1)
    assert found.offset == pytest.approx(-found.slope * shift, abs=0.1)


def test_a_model_that_ranks_the_wrong_way_round_is_not_turned_over() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(1_000).astype(np.float32)
    outcomes = random.binomial(1, to_probabilities(logits + 1)).astype(np.float32)
    found = calibrate(2 - logits, outcomes)
    assert found.slope == 0.0
    assert to_probabilities(np.asarray([found.offset]))[0] == pytest.approx(outcomes.mean(), abs=0.005)


@pytest.mark.parametrize("num_queries", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("name", _QUICK)
def test_every_query_is_predicted_by_a_member_that_has_not_seen_it(name: str, num_queries: int) -> None:
    some = world(num_queries)
    fitted = cross_fit(name, some.features, trials_of(some), seed=1)
    assert len(fitted.ensemble.members) == min(3, num_queries)
    assert np.isfinite(fitted.unseen).all()
    assert ((fitted.unseen >= 0) & (fitted.unseen <= 1)).all()
    assert fitted.ensemble.predict(some.features).shape == (min(3, num_queries), num_queries, 4)


def test_what_happened_on_a_query_does_not_change_what_is_predicted_for_it() -> None:
    some = world(30)
    trials = trials_of(some)
    flipped = trials._replace(outcomes=np.where(trials.query_ids == 4, 1 - trials.outcomes, trials.outcomes))
    features = some.features
    before, after = (
        [one.predict(features) for one in cross_fit("neighbours", features, given, seed=1).ensemble.members]
        for given in (trials, flipped)
    )
    same = [np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
    assert sorted(same) == [False, False, True]


@pytest.mark.parametrize("name", _QUICK)
def test_a_part_in_which_all_outcomes_are_alike_does_not_stop_learning(name: str) -> None:
    some = world(12)
    trials = trials_of(some)
    outcomes = (trials.query_ids == 5).astype(np.float32)
    fitted = cross_fit(name, some.features, trials._replace(outcomes=outcomes), seed=0)
    assert np.isfinite(fitted.unseen).all()


def test_queries_and_prompts_without_trials_are_left_out() -> None:
    some = world(20)
    trials = trials_of(some)
    fitted = cross_fit("neighbours", some.features, trials.take(trials.query_ids < 15), seed=0)
    assert np.isnan(fitted.unseen[15:]).all()
    assert np.isfinite(fitted.unseen[:15]).all()


def test_members_are_calibrated_alike() -> None:
    some = world(20)
    member = fit("additive", some)
    found = Ensemble((member, member), Calibration(2.0, 1.0)).predict(some.features)
    np.testing.assert_allclose(found[0], 2 * member.predict(some.features) + 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("module", ["torch", "xgboost", "lightgbm"])
def test_a_missing_extra_is_told_with_what_to_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match="pip install"):
        fit(next(one for one, needed in _NEEDED.items() if needed == module), world())
