"""The beam's rules, one by one and as properties."""

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.records import CandidateRef, RolloutRef
from drpo_graph.search.beam import hash_prompt, is_easy, path_reward, prune_beam, rank, refer_to, score_candidate
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import StoredCandidate

PLAIN = Settings()
COMPAT = Settings(compat="drpo")

# Few distinct values, so that ties and equal prompts are common.
rewards = st.one_of(st.none(), st.sampled_from([1.0, 2.5, 3.0, 4.25, 5.0]))
prompts = st.sampled_from("abcde")
beam_sizes = st.integers(1, 6)


def candidate(place: int, prompt: str, reward: float | None, path: float | None, **values: Any) -> CandidateRef:
    """Return a scored child; with no path reward of its own, the reward's."""
    stored: StoredCandidate = {
        "id": f"3.0.{place}",
        "parent_id": "2.0.0",
        "depth": 3,
        "origin": "rewrite",
        "prompt": prompt,
    }
    return {**refer_to(stored, lineage=["0"]), "reward": reward, "path_reward": path, **values}  # type: ignore[typeddict-item]


def children_of(*entries: tuple[str, float | None]) -> list[CandidateRef]:
    return [candidate(place, prompt, reward, reward) for place, (prompt, reward) in enumerate(entries)]


def places(beam: list[CandidateRef]) -> list[int]:
    return [int(one["id"].rsplit(".", 1)[1]) for one in beam]


def with_(settings: Settings = PLAIN, **values: Any) -> Settings:
    return settings.model_copy(update=values)


@st.composite
def levels(draw: st.DrawFn) -> list[CandidateRef]:
    """Children of one level; an unscored one may have a path reward from its ancestors."""
    entries = draw(st.lists(st.tuples(prompts, rewards, rewards), min_size=1, max_size=12))
    return [
        candidate(place, prompt, reward, path if reward is None or path is not None else reward)
        for place, (prompt, reward, path) in enumerate(entries)
    ]


any_settings = st.builds(
    with_,
    st.sampled_from([PLAIN, COMPAT]),
    beam_size=beam_sizes,
    deduplicate=st.booleans(),
    beam_sampling=st.sampled_from(["top", "stochastic"]),
    min_reward=st.one_of(st.none(), st.sampled_from([0.0, 3.0, 6.0])),
)
level_numbers = st.integers(0, 9)


@given(levels(), any_settings, level_numbers)
def test_unscored_candidate_never_enters_beam_while_one_is_scored(
    children: list[CandidateRef], settings: Settings, level: int
) -> None:
    beam = prune_beam(children, settings=settings, level=level)
    if any(child["reward"] is not None for child in children):
        assert all(one["reward"] is not None for one in beam)


@given(levels(), any_settings, level_numbers)
def test_beam_is_never_empty_never_too_large_and_never_invents(
    children: list[CandidateRef], settings: Settings, level: int
) -> None:
    beam = prune_beam(children, settings=settings, level=level)
    assert 1 <= len(beam) <= settings.beam_size
    assert all(one in children for one in beam)
    assert len(set(places(beam))) == len(beam)


@given(levels(), any_settings, level_numbers)
def test_equal_prompts_take_one_place(children: list[CandidateRef], settings: Settings, level: int) -> None:
    beam = prune_beam(children, settings=settings, level=level)
    if settings.deduplicate:
        hashes = [one["prompt_hash"] for one in beam]
        assert len(set(hashes)) == len(hashes)


@given(levels(), any_settings, level_numbers)
def test_beam_is_best_first_and_ties_go_to_creation_order(
    children: list[CandidateRef], settings: Settings, level: int
) -> None:
    beam = prune_beam(children, settings=settings, level=level)
    keys = [(-math.inf if one["path_reward"] is None else one["path_reward"]) for one in beam]
    assert keys == sorted(keys, reverse=True)
    for first, second in pairwise(beam):
        if first["path_reward"] == second["path_reward"]:
            assert places([first]) < places([second])


@given(levels(), any_settings, level_numbers, st.randoms(use_true_random=False))
def test_arrival_order_does_not_matter_while_ties_keep_creation_order(
    children: list[CandidateRef], settings: Settings, level: int, rng: random.Random
) -> None:
    def tie(child: CandidateRef) -> tuple[bool, float | None]:
        return child["reward"] is None, child["path_reward"]

    shuffled = rng.sample(children, len(children))
    # Put each group of equals back in order of creation, at the places where the shuffle left that group.
    in_order = {key: iter([child for child in children if tie(child) == key]) for key in map(tie, children)}
    permuted = [next(in_order[tie(child)]) for child in shuffled]
    assert prune_beam(permuted, settings=settings, level=level) == prune_beam(children, settings=settings, level=level)


@given(levels(), beam_sizes)
def test_top_beam_without_rejection_is_the_head_of_the_ranking(children: list[CandidateRef], beam_size: int) -> None:
    settings = with_(COMPAT, beam_size=beam_size)
    scored = [child for child in rank(children) if child["reward"] is not None]
    assert prune_beam(children, settings=settings, level=1) == (scored or rank(children))[:beam_size]


@given(levels())
def test_rank_is_a_permutation_with_unscored_ones_last(children: list[CandidateRef]) -> None:
    ranked = rank(children)
    assert sorted(places(ranked)) == places(children)
    is_unscored = [one["reward"] is None for one in ranked]
    assert is_unscored == sorted(is_unscored)


@given(levels(), any_settings, level_numbers)
def test_pruning_leaves_its_input_alone(children: list[CandidateRef], settings: Settings, level: int) -> None:
    before = [dict(child) for child in children]
    prune_beam(children, settings=settings, level=level)
    assert children == before


@given(levels(), any_settings, level_numbers)
def test_rejection_leaves_nothing_below_the_bound_unless_all_are_below(
    children: list[CandidateRef], settings: Settings, level: int
) -> None:
    bound = settings.min_reward
    scored = [child for child in children if child["reward"] is not None]
    if bound is None or not scored:
        return
    beam = prune_beam(children, settings=settings, level=level)
    is_accepted = [child["path_reward"] is not None and child["path_reward"] >= bound for child in scored]
    if any(is_accepted):
        assert all(one["path_reward"] is not None and one["path_reward"] >= bound for one in beam)
    else:
        assert beam == prune_beam(children, settings=with_(settings, min_reward=None), level=level)


def test_equal_prompts_keep_the_better_one_wherever_it_was_created() -> None:
    children = children_of(("a", 3.0), ("b", 2.0), ("a", 4.0), ("c", 1.0))
    assert places(prune_beam(children, settings=with_(beam_size=3), level=1)) == [2, 1, 3]


def test_compat_lets_equal_prompts_fill_the_beam() -> None:
    children = children_of(("a", 3.0), ("b", 2.0), ("a", 4.0), ("c", 1.0))
    assert places(prune_beam(children, settings=with_(COMPAT, beam_size=3), level=1)) == [2, 0, 1]


def test_wholly_unscored_level_keeps_the_best_past() -> None:
    children = [candidate(0, "a", None, 2.0), candidate(1, "b", None, None), candidate(2, "c", None, 3.0)]
    assert places(prune_beam(children, settings=with_(beam_size=3), level=3)) == [2, 0, 1]
    assert places(prune_beam(children, settings=with_(beam_size=1), level=3)) == [2]


def test_compat_failure_counts_zero_and_still_competes() -> None:
    children = children_of(("a", 0.0), ("b", 2.0))
    assert places(prune_beam(children, settings=with_(COMPAT, beam_size=2), level=1)) == [1, 0]


@given(levels(), beam_sizes, level_numbers)
def test_stochastic_draw_is_seeded(children: list[CandidateRef], beam_size: int, level: int) -> None:
    settings = with_(beam_sampling="stochastic", beam_size=beam_size)
    random.seed(level)
    first = prune_beam(children, settings=settings, level=level)
    random.seed(level + 1)
    assert prune_beam(children, settings=settings, level=level) == first


def test_stochastic_draw_depends_on_seed_and_level() -> None:
    children = children_of(*((letter, 3.0) for letter in "abcdefghij"))
    settings = with_(beam_sampling="stochastic", beam_size=2)
    by_level = {tuple(places(prune_beam(children, settings=settings, level=level))) for level in range(20)}
    by_seed = {tuple(places(prune_beam(children, settings=with_(settings, seed=seed), level=1))) for seed in range(20)}
    assert len(by_level) > 5
    assert len(by_seed) > 5


def test_stochastic_draw_favours_the_better_in_proportion() -> None:
    children = children_of(("a", 3.0), ("b", 4.0))
    settings = with_(beam_sampling="stochastic", beam_size=1)
    wins = sum(
        places(prune_beam(children, settings=with_(settings, seed=seed), level=1)) == [1] for seed in range(2000)
    )
    # exp(4) : exp(3) is 0.731 : 0.269; the standard deviation of the share is 0.01.
    assert 0.69 < wins / 2000 < 0.77


def test_stochastic_draw_at_a_low_temperature_is_the_top() -> None:
    children = children_of(("a", 3.0), ("b", 4.0), ("c", 3.5), ("d", 1.0))
    settings = with_(beam_sampling="stochastic", beam_size=2, beam_temperature=1e-9)
    assert all(places(prune_beam(children, settings=settings, level=level)) == [1, 2] for level in range(20))


def test_temperature_decays_by_level() -> None:
    children = children_of(("a", 3.0), ("b", 4.0))
    settings = with_(beam_sampling="stochastic", beam_size=1, beam_temperature=50.0, beam_temperature_decay=0.1)

    def share_of_worse(level: int) -> float:
        drawn = [prune_beam(children, settings=with_(settings, seed=seed), level=level) for seed in range(300)]
        return sum(places(beam) == [0] for beam in drawn) / 300

    assert share_of_worse(1) > 0.35
    assert share_of_worse(5) == 0.0


def rollout(query_id: str, reward: float | None) -> RolloutRef:
    return {"candidate_id": "1.0.0", "query_id": query_id, "reward": reward, "is_failed": reward is None}


def unscored(depth: int = 1, **values: Any) -> CandidateRef:
    return candidate(0, "a", None, None, depth=depth, **values)


def test_reward_is_the_mean_over_the_scored_rollouts() -> None:
    rollouts = [rollout("q1", 2.0), rollout("q2", None), rollout("q3", 5.0)]
    scored = score_candidate(unscored(), rollouts, settings=PLAIN)
    assert scored["reward"] == 3.5
    assert scored["query_ids"] == ["q1", "q2", "q3"]


def test_candidate_without_a_scored_rollout_has_no_reward_and_leaves_the_path_as_it_was() -> None:
    settings = with_(reward_aggregate="mean")
    before = unscored(depth=3, path_sum=7.0, path_count=2)
    scored = score_candidate(before, [rollout("q1", None)], settings=settings)
    assert scored["reward"] is None
    assert (scored["path_sum"], scored["path_count"], scored["path_reward"]) == (7.0, 2, 3.5)


def test_root_is_left_out_of_the_path() -> None:
    root = unscored(depth=0)
    for aggregate in ("mean", "sum", "last"):
        scored = score_candidate(root, [rollout("q1", 4.0)], settings=with_(reward_aggregate=aggregate))
        assert (scored["path_sum"], scored["path_count"], scored["path_reward"]) == (0.0, 0, 4.0)


def test_path_reward_is_mean_sum_or_last() -> None:
    before = unscored(depth=3, path_sum=5.0, path_count=2)
    paths = {
        aggregate: score_candidate(before, [rollout("q", 4.0)], settings=with_(reward_aggregate=aggregate))[
            "path_reward"
        ]
        for aggregate in ("mean", "sum", "last")
    }
    assert paths == {"mean": 3.0, "sum": 9.0, "last": 4.0}


@pytest.mark.parametrize(("beam_size", "expected"), [(1, 4.0), (2, 3.0)])
def test_compat_path_reward_is_the_mean_or_the_last_for_a_beam_of_one(beam_size: int, expected: float) -> None:
    before = unscored(depth=3, path_sum=5.0, path_count=2)
    scored = score_candidate(before, [rollout("q", 4.0)], settings=with_(COMPAT, beam_size=beam_size))
    assert scored["path_reward"] == expected


def test_path_without_any_score_has_no_path_reward() -> None:
    assert path_reward(unscored(depth=2), aggregate="mean") is None
    assert path_reward(unscored(depth=2), aggregate="sum") is None
    assert path_reward(unscored(depth=2), aggregate="last") is None


@given(st.lists(st.floats(1, 5), min_size=1, max_size=8))
def test_mean_path_reward_lies_between_the_rewards_of_the_path(path: list[float]) -> None:
    settings = with_(reward_aggregate="mean")
    one = unscored(depth=0)
    for depth, reward in enumerate(path, 1):
        one = score_candidate({**one, "depth": depth}, [rollout("q", reward)], settings=settings)
    assert one["path_reward"] is not None
    assert min(path) - 1e-9 <= one["path_reward"] <= max(path) + 1e-9


@pytest.mark.parametrize(
    ("reward", "threshold", "expected"),
    [(4.5, 4.5, False), (4.51, 4.5, True), (5.0, 5.0, True), (4.99, 5.0, False), (None, 1.0, False)],
)
@pytest.mark.parametrize("settings", [PLAIN, COMPAT])
def test_easy_is_strictly_above_the_threshold_or_all_fives(
    settings: Settings, reward: float | None, threshold: float, expected: bool
) -> None:
    one = candidate(0, "a", reward, reward)
    assert is_easy(one, settings=with_(settings, skip_threshold=threshold)) is expected


def test_failed_critique_counts_as_easy_only_under_compat() -> None:
    one = candidate(0, "a", 0.0, 0.0)
    assert is_easy(one, settings=COMPAT, has_failed=True)
    assert not is_easy(one, settings=PLAIN, has_failed=True)


def test_prompt_hash_tells_prompts_apart() -> None:
    assert hash_prompt("a") == hash_prompt("a")
    assert hash_prompt("a") != hash_prompt("a ")
    assert len(hash_prompt("ü")) == 16
