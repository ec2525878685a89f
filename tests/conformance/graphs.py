"""The graphs that a user runs, alone and inside other graphs, all with the same models behind a fake server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from pydantic import JsonValue
from typing_extensions import TypedDict

from drpo_graph import EventTransformer, build_graph, build_settings
from drpo_graph.icl import build_icl_graph
from drpo_graph.settings.settings import Settings
from tests.icl.test_loop import Steady
from tests.support.command import serve
from tests.support.fake_server import Reply, ServerOptions
from tests.support.oracle import build_responder
from tests.support.world import INITIAL_PROMPT, World

QUERIES = World(seed=3).train_queries[:4]
EXAMPLES = [{"query": f"question {number} plan 3,4,5", "response": "v0"} for number in range(2)]
RECURSION: Any = {"recursion_limit": 10_000}
NOT_COMPARED = ("thread_id", "usage_by_role")


class ParentInput(TypedDict):
    """What a graph around ours is given."""

    queries: list[str]


class ParentState(ParentInput, total=False):
    """What it keeps."""

    system_prompt: str
    result: dict[str, JsonValue]


@dataclass(frozen=True)
class Case:
    """A graph with what it is given."""

    build: Callable[[Settings, Mapping[str, Any]], Any]
    """Returns the graph, compiled with these keyword arguments."""
    given: Mapping[str, Any]
    is_parent: bool = False


def build_search(settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return the search itself."""
    return build_graph(settings, **how)


def build_icl(settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return the optimisation of ICL examples itself."""
    return build_icl_graph(settings, **how)


def build_parent(settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return a graph with the search as a node."""
    graph = StateGraph(ParentState, input_schema=ParentInput)
    graph.add_node("optimise", build_graph(settings))
    return _finish(graph, how)


def build_calling_parent(settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return a graph with a node that calls the search."""
    search = build_graph(settings)

    async def optimise(state: ParentState, config: RunnableConfig) -> ParentState:
        return await search.ainvoke({"queries": state["queries"]}, {**config, **RECURSION})

    graph = StateGraph(ParentState, input_schema=ParentInput)
    graph.add_node("optimise", optimise)
    return _finish(graph, how)


def build_grandparent(settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return a graph with a graph with the search as a node."""
    graph = StateGraph(ParentState, input_schema=ParentInput)
    graph.add_node("parent", build_parent(settings, {}))
    graph.add_edge(START, "parent")
    graph.add_edge("parent", END)
    return graph.compile(transformers=[EventTransformer], **how)


def _finish(graph: StateGraph[Any, Any, Any, Any], how: Mapping[str, Any]) -> Any:
    graph.add_edge(START, "optimise")
    graph.add_edge("optimise", END)
    return graph.compile(transformers=[EventTransformer], **how)


_SEARCHED = {"queries": QUERIES}
CASES: Mapping[str, Case] = {
    "search": Case(build_search, _SEARCHED),
    "ICL": Case(build_icl, {"examples": EXAMPLES, "num_iters": 2, "num_samples": 1}),
    "parent": Case(build_parent, _SEARCHED, is_parent=True),
    "calling parent": Case(build_calling_parent, _SEARCHED, is_parent=True),
    "grandparent": Case(build_grandparent, _SEARCHED, is_parent=True),
}


def make_settings(base_url: str, **more: object) -> Settings:
    """Return the settings of all cases."""
    search = {"depth": 2, "beam_size": 1, "n_actions": 2, "queries_per_level": 1, "initial_prompt": INITIAL_PROMPT}
    return build_settings({"model": "openai:world", "base_url": base_url, "probe": False, **search, **more})


@contextmanager
def serve_models() -> Iterator[str]:
    """Run what answers as all models of all cases; gives its base URL."""
    world, steady = build_responder(seed=3), Steady()

    def respond(body: dict[str, object]) -> Reply:
        if "prompt" in body:
            return Reply(["An answer."])
        return (steady if "question" in str(body) and " plan " in str(body) else world)(body)

    with serve(respond, ServerOptions()) as server:
        yield server.base_url


def found_in(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run found, without what differs from run to run."""
    result = output["result"]
    assert isinstance(result, Mapping)
    return {name: value for name, value in result.items() if name not in NOT_COMPARED}
