"""A graph that is called without a thread: each call is a run of its own."""

from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from drpo_graph.graph import SearchGraph, build_graph
from drpo_graph.records import RunResult
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.session import RunContext
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, oracle_context
from tests.support.world import World

SETTINGS = fake_settings(depth=2, beam_size=1, queries_per_level=1, n_actions=1)
LIMIT = {"recursion_limit": RECURSION_LIMIT}


class ParentState(TypedDict, total=False):
    """What a parent graph hands over, and gets."""

    queries: list[str]
    result: dict[str, object]


async def ask(graph: SearchGraph, context: RunContext, *queries: str) -> RunResult:
    output = await graph.ainvoke({"queries": list(queries)}, {**LIMIT}, context=context)  # type: ignore[call-overload]
    return RunResult.model_validate(output["result"])


async def test_second_call_of_an_unnamed_graph_is_a_run_of_its_own() -> None:
    transport = OracleTransport(Oracle(World(seed=1)))
    graph, context = build_graph(SETTINGS), oracle_context(SETTINGS, transport)
    first = await ask(graph, context, "How do I knit?", "How do I sew?")
    num_requests = len(transport.requests)
    second = await ask(graph, context, "Why is the sea salt?", "What is rust?")
    assert first.thread_id != second.thread_id
    assert first.fingerprints["data"] != second.fingerprints["data"]
    # What the first call was told is no answer to the second.
    assert len(transport.requests) == 2 * num_requests
    asked = [request for _, request in transport.requests[num_requests:]]
    assert not any("knit" in text or "sew" in text for text in asked)


async def test_same_queries_again_are_asked_again() -> None:
    transport = OracleTransport(Oracle(World(seed=1)))
    graph, context = build_graph(SETTINGS), oracle_context(SETTINGS, transport)
    first = await ask(graph, context, "How do I knit?", "How do I sew?")
    num_requests = len(transport.requests)
    second = await ask(graph, context, "How do I knit?", "How do I sew?")
    assert len(transport.requests) == 2 * num_requests
    assert second.model_copy(update={"thread_id": first.thread_id}) == first


async def test_unnamed_parent_runs_the_search_anew_each_time() -> None:
    transport = OracleTransport(Oracle(World(seed=1)))
    parent = StateGraph(ParentState)
    parent.add_node("drpo", build_graph(SETTINGS))
    parent.add_edge(START, "drpo")
    parent.add_edge("drpo", END)
    graph, context = parent.compile(), oracle_context(SETTINGS, transport)
    names = set()
    for queries in (["How do I knit?", "How do I sew?"], ["Why is the sea salt?", "What is rust?"]):
        output = await graph.ainvoke({"queries": queries}, {**LIMIT}, context=context)  # type: ignore[call-overload]
        names.add(output["result"]["thread_id"])
    assert len(names) == 2


async def test_named_run_has_its_thread_for_id() -> None:
    context = oracle_context(SETTINGS, OracleTransport(Oracle(World(seed=1))))
    graph = build_graph(SETTINGS, checkpointer=InMemorySaver())
    named = {**LIMIT, "configurable": {"thread_id": "run"}}
    given = {"queries": ["How do I knit?", "How do I sew?"]}
    output = await graph.ainvoke(given, named, context=context)  # type: ignore[call-overload]
    assert output["result"]["thread_id"] == "run"
