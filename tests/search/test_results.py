"""What is delivered without held-out queries: never what is known to be no better than the user's prompt."""

from typing import cast

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.records import CandidateRef, Rollout
from drpo_graph.search.results import choose_delivered
from drpo_graph.storage.archive import Archive

KEPT = "1.0.9"
"""The initial prompt, tried again."""
Rewards = dict[str, float | None]

BARE = {"parent_id": None, "depth": 0, "origin": "initial"}


async def choose(by_candidate: dict[str, Rewards], *, is_compat: bool = False) -> str:
    """Return what is delivered of a beam in this order; ``0`` is the initial prompt."""
    archive = Archive(InMemoryStore(), "t")
    for candidate_id, rewards in by_candidate.items():
        prompt = "The user's." if candidate_id in ("0", KEPT) else f"Prompt {candidate_id}."
        await archive.put("candidates", candidate_id, {**BARE, "id": candidate_id, "prompt": prompt})
        for query_id, reward in rewards.items():
            rollout = Rollout(candidate_id=candidate_id, query_id=query_id, response="", critique=None, reward=reward)
            await archive.put_rollout(rollout)
    beam = [
        cast(CandidateRef, {"id": candidate_id, "query_ids": list(rewards)})
        for candidate_id, rewards in by_candidate.items()
        if candidate_id != "0"
    ]
    return await choose_delivered(archive, beam, is_compat=is_compat)


@pytest.mark.parametrize(
    ("initial", "first", "second", "delivered"),
    [
        ({"a": 3, "b": 3}, {"a": 4, "b": 3}, {"a": 5, "b": 5}, "1.0.0"),
        # A tie, by one query each way, or within how floats are added.
        ({"a": 3, "b": 3}, {"a": 3, "b": 3}, {"a": 2, "b": 3}, "0"),
        ({"a": 3, "b": 4}, {"a": 4, "b": 3}, {"a": 3, "b": 4}, "0"),
        ({"a": 0.3, "b": 3}, {"a": 0.1 + 0.2, "b": 3}, {"a": 0.3, "b": 3}, "0"),
        ({"a": 4, "b": 4}, {"a": 3, "b": 3}, {"a": 5, "b": 4}, "1.0.1"),
        # Not run on all of them: the candidate's own reward is all there is.
        ({"a": 5}, {"a": 3, "b": 3}, {"a": 5, "b": 5}, "1.0.0"),
        # Rewards of different queries do not compare: what was compared, and is better, comes first.
        ({"a": 3}, {"b": 5}, {"a": 4}, "1.0.1"),
        ({"a": 3}, {"b": 5}, {"a": 3}, "1.0.0"),
        ({"a": 3}, {"a": 3}, {"b": 2}, "1.0.1"),
        # Only queries on which both were scored compare.
        ({"a": 3, "b": None}, {"a": 3, "b": 5}, {"a": 4, "b": 1}, "1.0.1"),
        ({"a": None, "b": None}, {"a": 3, "b": 3}, {"a": 4, "b": 4}, "1.0.0"),
    ],
)
async def test_what_scored_no_higher_on_the_same_queries_replaces_nothing(
    initial: Rewards, first: Rewards, second: Rewards, delivered: str
) -> None:
    assert await choose({"0": initial, "1.0.0": first, "1.0.1": second}) == delivered


async def test_initial_prompt_that_was_tried_again_is_compared_with() -> None:
    assert await choose({"0": {"a": 5}, "1.0.0": {"b": 4}, KEPT: {"b": 4}}) == "0"
    assert await choose({"0": {"a": 5}, "1.0.0": {"b": 4}, KEPT: {"b": 3}}) == "1.0.0"


async def test_published_search_delivers_the_first_of_its_beam() -> None:
    assert await choose({"0": {"a": 5.0}, "1.0.0": {"a": 3.0}}, is_compat=True) == "1.0.0"
