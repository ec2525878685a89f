"""A scored response's event leads to its texts, from the moment at which it is told."""

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph import RunOptions, optimize, read_rollouts
from drpo_graph.errors import BudgetSpentError, RunNotFoundError
from drpo_graph.events.schema import Event, RolloutScored
from drpo_graph.settings.settings import Settings
from tests.events.test_numbering import QUERIES, settings  # noqa: F401  # A fixture.
from tests.support.searches import fake_settings, run_search
from tests.support.world import World


def scored_in(told: list[Event]) -> dict[str, RolloutScored]:
    """Return the scored responses of a run by their ids."""
    return {one.rollout_id: one for one in told if isinstance(one, RolloutScored)}


async def test_one_call_fetches_the_texts_of_stored_runs(settings: Settings) -> None:  # noqa: F811
    told: list[Event] = []
    with pytest.raises(BudgetSpentError):
        await optimize(QUERIES, settings=settings, thread_id="t", options=RunOptions(sinks=(told.append,)))
    scored = scored_in(told)
    found = await read_rollouts("t", [*scored, "9.9.9/none"])
    assert list(found) == list(scored)
    assert found
    for one, rollout in found.items():
        event = scored[one]
        assert (rollout.candidate_id, rollout.query_id) == (event.candidate_id, event.query_id)
        assert rollout.reward == event.reward
        assert rollout.response
        assert rollout.critique is not None
    with pytest.raises(RunNotFoundError):
        await read_rollouts("u", scored)


async def test_one_call_fetches_the_texts_of_a_graph_in_an_app() -> None:
    told: list[Event] = []
    store, world = InMemoryStore(), World(seed=3)
    await run_search(
        fake_settings(depth=2, beam_size=1, n_actions=2, queries_per_level=2),
        world,
        world.train_queries,
        validation=world.train_queries[-2:],
        store=store,
        sinks=(told.append,),
    )
    found = await read_rollouts(told[0].run_id, scored_in(told), store=store)
    assert found.keys() == scored_in(told).keys()
    assert all(found[one].reward == event.reward for one, event in scored_in(told).items())
