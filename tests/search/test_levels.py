"""Which queries a level uses, and how deep the search goes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.search.levels import has_level, new_query_indices, plan_depth, prefetch_indices, query_indices
from drpo_graph.settings.settings import Settings

PLAIN = Settings()


def settings_of(**values: Any) -> Settings:
    return PLAIN.model_copy(update={"queries_per_level": 1, "query_policy": "stream", **values})


def stream(size: int) -> Settings:
    return settings_of(queries_per_level=size)


def pool(size: int, pool_size: int | None = None, **values: Any) -> Settings:
    return settings_of(queries_per_level=size, query_policy="pool", pool_size=pool_size, **values)


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    size = draw(st.integers(1, 6))
    if draw(st.booleans()):
        return stream(size)
    extra = draw(st.one_of(st.none(), st.integers(0, 6)))
    return pool(size, None if extra is None else size + extra, seed=draw(st.integers(0, 3)))


nums = st.integers(1, 40)
level_numbers = st.integers(0, 30)


def test_stream_takes_new_queries_each_level() -> None:
    assert [query_indices(level, settings=stream(2), num_queries=6) for level in range(4)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [],
    ]


def test_last_level_of_a_stream_may_get_fewer_queries() -> None:
    assert query_indices(2, settings=stream(2), num_queries=5) == [4]
    assert query_indices(3, settings=stream(2), num_queries=5) == []


def test_pool_of_one_levels_size_is_the_same_every_level() -> None:
    assert {tuple(query_indices(level, settings=pool(3, 3), num_queries=9)) for level in range(5)} == {(0, 1, 2)}


def test_larger_pool_is_drawn_from_anew_each_level() -> None:
    drawn = [query_indices(level, settings=pool(3, 6), num_queries=9) for level in range(20)]
    assert len({tuple(one) for one in drawn}) > 5
    assert {index for one in drawn for index in one} == set(range(6))


def test_pool_larger_than_the_dataset_is_the_dataset() -> None:
    assert query_indices(4, settings=pool(5, 50), num_queries=3) == [0, 1, 2]
    assert set(query_indices(4, settings=pool(2, 50), num_queries=3)) < {0, 1, 2}


def test_draws_from_the_pool_depend_on_the_seed_alone() -> None:
    by_seed = [
        [tuple(query_indices(level, settings=pool(3, 9, seed=seed), num_queries=9)) for level in range(8)]
        for seed in (0, 0, 1)
    ]
    assert by_seed[0] == by_seed[1]
    assert by_seed[0] != by_seed[2]


@given(any_settings(), level_numbers, nums)
def test_a_levels_queries_exist_are_distinct_and_in_order(settings: Settings, level: int, num_queries: int) -> None:
    indices = query_indices(level, settings=settings, num_queries=num_queries)
    assert indices == sorted(set(indices))
    assert all(0 <= one < num_queries for one in indices)
    assert len(indices) <= settings.queries_per_level
    if settings.query_policy == "pool":
        assert len(indices) == min(settings.queries_per_level, num_queries)


@given(any_settings(), st.integers(0, 12), nums)
def test_new_queries_are_those_that_no_former_level_used(settings: Settings, level: int, num_queries: int) -> None:
    per_level = [query_indices(former, settings=settings, num_queries=num_queries) for former in range(level + 1)]
    new = new_query_indices(level, settings=settings, num_queries=num_queries)
    former = {index for indices in per_level[:-1] for index in indices}
    assert new == [index for index in per_level[-1] if index not in former]


@given(any_settings(), nums, st.integers(1, 12))
def test_metrics_selected_ahead_cover_every_level_once_and_nothing_more(
    settings: Settings, num_queries: int, max_depth: int
) -> None:
    # The root's queries select theirs themselves; beside level t, those of level t + 1 are selected.
    selected = query_indices(0, settings=settings, num_queries=num_queries)
    used = set(selected)
    level = 1
    while has_level(level, max_depth=max_depth, settings=settings, num_queries=num_queries):
        selected += prefetch_indices(level, max_depth=max_depth, settings=settings, num_queries=num_queries)
        used.update(query_indices(level, settings=settings, num_queries=num_queries))
        assert used == set(selected)
        level += 1
    assert prefetch_indices(level, max_depth=max_depth, settings=settings, num_queries=num_queries) == []
    assert len(selected) == len(set(selected))


def test_nothing_is_selected_ahead_when_a_reward_may_stop_the_search() -> None:
    settings = settings_of(stop_reward=4.0)
    assert prefetch_indices(1, max_depth=5, settings=settings, num_queries=9) == []


def test_search_ends_at_its_depth_or_when_queries_run_out() -> None:
    settings = stream(2)
    assert has_level(3, max_depth=3, settings=settings, num_queries=9)
    assert not has_level(4, max_depth=3, settings=settings, num_queries=9)
    assert has_level(4, max_depth=9, settings=settings, num_queries=9)
    assert not has_level(5, max_depth=9, settings=settings, num_queries=9)
    assert has_level(30, max_depth=30, settings=pool(2), num_queries=1)


def test_easy_level_adds_one_level() -> None:
    settings = settings_of(max_depth_increase=2)
    assert plan_depth(is_easy=True, max_depth=4, num_increases=0, settings=settings) == (5, 1)
    assert plan_depth(is_easy=False, max_depth=4, num_increases=0, settings=settings) == (4, 0)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_easy_levels_add_no_more_than_the_limit_in_all(limit: int) -> None:
    settings = settings_of(max_depth_increase=limit)
    depth, num = 4, 0
    for _ in range(10):
        depth, num = plan_depth(is_easy=True, max_depth=depth, num_increases=num, settings=settings)
    assert (depth, num) == (4 + limit, limit)
