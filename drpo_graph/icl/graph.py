"""The graph over ICL examples: this file alone knows its shape. Routing functions are pure and total.

::

    START -> start -> advance -> [example* -> advance]* -> conclude -> END      one Send per example of a step
    example = select_metrics -> judge -> choose -> [rewrite -> judge* -> choose]* -> END
"""

from collections.abc import Mapping
from typing import Any, cast

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, Send

from drpo_graph.events.emitter import EventSink
from drpo_graph.icl import nodes
from drpo_graph.icl.state import ExampleOutput, ExampleState, ExampleTask, ICLInput, ICLOutput, ICLState, JudgeTask
from drpo_graph.models.given_models import GivenModel
from drpo_graph.nodes import select_metrics
from drpo_graph.records import Role
from drpo_graph.search.assembly import Parts
from drpo_graph.search.hosting import Host, add_subgraph, compile_graph
from drpo_graph.settings.caller_settings import CallerContext
from drpo_graph.settings.settings import Settings

ICLGraph = CompiledStateGraph[ICLState, Any, ICLInput, ICLOutput]

OPTIONAL_ROLES: frozenset[Role] = frozenset({"base"})
"""Nobody is asked to respond: the responses are given, or written by the optimizer."""


def build_icl_graph(
    settings: Settings | None = None,
    *,
    models: Mapping[Role, GivenModel] | None = None,
    sinks: tuple[EventSink, ...] = (),
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
) -> ICLGraph:
    """Return the optimisation of ICL examples as a compiled graph.

    Args:
        settings: Names the models of the roles ``metrics``, ``critic`` and ``optimizer``.
        models: Chat model instances by role, in place of the settings' model strings.
        sinks: Called with every event, besides LangGraph's custom stream.
        checkpointer: Where the graph's state is saved.
        store: Where texts and finished calls are saved.
    """
    host = Host(
        settings or Settings(),
        nodes.announce_resume,
        Parts(models=models),
        "icl",
        store=store,
        sinks=tuple(sinks),
        optional_roles=OPTIONAL_ROLES,
    )
    graph = StateGraph(ICLState, context_schema=CallerContext, input_schema=ICLInput, output_schema=ICLOutput)
    host.add_step(graph, nodes.start, ICLState, begins=True)
    host.add_step(graph, nodes.advance, ICLState)
    add_subgraph(graph, "example", _build_example(host), ExampleTask)
    host.add_step(graph, nodes.conclude, ICLState)
    graph.add_edge(START, "start")
    graph.add_edge("start", "advance")
    graph.add_conditional_edges("advance", _route_examples, ["example", "conclude"])
    graph.add_edge("example", "advance")
    graph.add_edge("conclude", END)
    return cast(ICLGraph, compile_graph(graph, "drpo_icl", checkpointer=checkpointer, store=store))


def _build_example(host: Host) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(ExampleState, input_schema=ExampleTask, output_schema=ExampleOutput)
    host.add_step(graph, nodes.judge, JudgeTask)
    for step in (select_metrics, nodes.choose, nodes.rewrite):
        host.add_step(graph, step, ExampleState)
    graph.add_edge(START, "select_metrics")
    graph.add_conditional_edges("select_metrics", _route_given, ["judge"])
    graph.add_edge("judge", "choose")
    graph.add_conditional_edges("choose", _route_round, ["rewrite", END])
    graph.add_conditional_edges("rewrite", _route_rewrites, ["judge", "choose"])
    return graph.compile(name="example")


def _route_examples(state: ICLState) -> list[Send] | str:
    tasks: list[ExampleTask] = [
        {
            "run_id": state["run_id"],
            "query_id": query_id,
            "num_iters": state["num_iters"],
            "num_samples": state["num_samples"],
        }
        for query_id in state["query_ids"]
    ]
    return [Send("example", task) for task in tasks] or "conclude"


def _route_given(state: ExampleState) -> list[Send]:
    return [_send_judge(state, nodes.GIVEN_ID)]


def _route_round(state: ExampleState) -> str:
    return END if state["is_done"] else "rewrite"


def _route_rewrites(state: ExampleState) -> list[Send] | str:
    """Judge each rewrite; a round that brought none is over."""
    return [_send_judge(state, one) for one in state["response_ids"]] or "choose"


def _send_judge(state: ExampleState, response_id: str) -> Send:
    task: JudgeTask = {"run_id": state["run_id"], "query_id": state["query_id"], "response_id": response_id}
    return Send("judge", task)
