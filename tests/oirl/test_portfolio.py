"""A portfolio is kept where its choice by query beats its best member on queries that had no part in it."""

import numpy as np
import pytest

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.portfolio import choose_portfolio
from drpo_graph.oirl.training import TrainingSettings, train_router
from tests.support.prompt_worlds import PROMPTS, WorldEmbeddings, make_world


def make_tables(*, has_preferences: bool, num_queries: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards and outcomes of three prompts, of which the first two suit a half of the queries each."""
    random = np.random.default_rng(0)
    kind = np.arange(num_queries)[:, None] % 2
    rates = np.where(kind == np.arange(3), 0.85, 0.2) if has_preferences else np.full((num_queries, 3), 0.5)
    outcomes = (random.random(rates.shape) < rates).astype(np.float32)
    return (rates + random.normal(0, 0.05, rates.shape)).astype(np.float32), outcomes


def test_prompts_that_suit_different_queries_are_kept() -> None:
    rewards, outcomes = make_tables(has_preferences=True)
    found = choose_portfolio(rewards, outcomes, size=2, seed=0)
    assert sorted(found.prompts) == [0, 1]
    assert found.beats_best
    assert found.expected[1] > found.expected[0]
    assert "2 prompts beat the best of them" in found.reason


def test_where_nothing_is_gained_the_best_single_prompt_stays_alone() -> None:
    rewards, outcomes = make_tables(has_preferences=False)
    found = choose_portfolio(rewards, outcomes, size=3, seed=0)
    assert len(found.prompts) == 1
    assert len(found.proposed) > 1
    assert "no gain" in found.reason


def test_a_set_without_a_gain_is_kept_in_few_of_many_worlds() -> None:
    kept = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        rewards = random.random((200, 4)).astype(np.float32)
        outcomes = (random.random((200, 4)) < 0.4).astype(np.float32)
        kept += choose_portfolio(rewards, outcomes, size=3, seed=seed).beats_best
    assert kept <= 20


def test_few_outcomes_that_differ_decide_nothing() -> None:
    rewards, outcomes = make_tables(has_preferences=True, num_queries=12)
    found = choose_portfolio(rewards, outcomes, size=2, seed=0)
    assert len(found.prompts) == 1
    assert "too few outcomes differ" in found.reason


def test_pairs_that_were_never_tried_are_left_out() -> None:
    rewards, outcomes = make_tables(has_preferences=True)
    outcomes[::3, 1] = np.nan
    assert choose_portfolio(rewards, outcomes, size=2, seed=0).num_queries < 200


@pytest.mark.parametrize(("size", "num_queries"), [(0, 10), (2, 1)])
def test_what_cannot_be_chosen_on_is_named(size: int, num_queries: int) -> None:
    rewards, outcomes = make_tables(has_preferences=True, num_queries=num_queries)
    with pytest.raises(DemonstrationsError, match="cannot be chosen"):
        choose_portfolio(rewards, outcomes, size=size, seed=0)


async def test_a_router_keeps_the_portfolio_alone() -> None:
    settings = TrainingSettings(reward_model="neighbours", portfolio=2)
    router = await train_router(make_world(400), settings=settings, embeddings=WorldEmbeddings())
    assert {one.text for one in router.prompts} == set(PROMPTS[:2])
    assert router.parts.portfolio is not None
    assert router.parts.portfolio.beats_best
    assert not router.has_abstained
    assert (await router.ainvoke("Journey 7 with 3 steps.")).prompt == PROMPTS[1]
