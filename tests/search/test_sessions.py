"""Which session a node works with once its run has failed."""

import asyncio

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import RunInterruptedError
from drpo_graph.search.session import RunContext, keep_session
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, oracle_context
from tests.support.world import World

FAILURE = ValueError("the sibling's")


@pytest.fixture
def context() -> RunContext:
    world = World(seed=3)
    return oracle_context(fake_settings(probe=False), OracleTransport(Oracle(world)), store=InMemoryStore())


async def test_siblings_of_a_failed_node_make_no_further_call_and_a_new_start_does(context: RunContext) -> None:
    has_begun, has_failed = asyncio.Event(), asyncio.Event()

    async def one_node() -> str:
        session = await context.session("r")
        has_begun.set()
        await has_failed.wait()
        # Each node of a subgraph runs in a task of its own.
        session.ledger.stop.check()
        return session.run_id

    async def subgraph() -> str:
        keep_session()
        with pytest.raises(RunInterruptedError):
            await asyncio.create_task(one_node())
        with pytest.raises(RunInterruptedError):
            await asyncio.create_task(one_node())
        return (await asyncio.create_task(context.session("other"))).run_id

    sibling = asyncio.create_task(subgraph())
    await has_begun.wait()
    first = await context.session("r")
    await context.abandon("r", FAILURE)
    has_failed.set()
    # What was never of the failed run begins as ever, in its own subgraph too.
    assert await sibling == "other"
    second = await context.session("r")
    assert second is not first
    second.ledger.stop.check()
