"""The graph: this file alone knows its shape. Routing functions are pure and total.

::

    START -> start_run -> rollout*(root) + select_metrics* -> score_beams
    score_beams -> expand* + select_metrics*(next level) -> score_beams -> ... -> [validate*] -> conclude -> END
    score_beams -> review -> ...                   where a person decides about each level's beam
    score_beams -> rollout* -> score_beams         the same candidates on other queries, where none could be scored
    conclude -> validate* -> conclude              where the user lets failed answers be asked for again
    expand  = rewrite_prompts -> rollout*          one Send per child and query: no barrier between children
    rollout = sample_errors (+ select_metrics) -> critique
"""

from typing import Any, Unpack, cast

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, Send

from drpo_graph.events.emitter import EventSink
from drpo_graph.nodes import (
    conclude,
    critique,
    review,
    rewrite_prompts,
    sample_errors,
    score_beams,
    select_metrics,
    start_run,
)
from drpo_graph.records import ROOT_ID
from drpo_graph.search.announce import announce_resume
from drpo_graph.search.assembly import GivenParts, take_parts
from drpo_graph.search.hosting import Host, add_subgraph, compile_graph
from drpo_graph.search.state import (
    ExpandOutput,
    ExpandState,
    ExpandTask,
    MetricsTask,
    RolloutOutput,
    RolloutState,
    RolloutTask,
    SearchInput,
    SearchOutput,
    SearchState,
)
from drpo_graph.settings.caller_settings import CallerContext
from drpo_graph.settings.settings import Settings

SearchGraph = CompiledStateGraph[SearchState, Any, SearchInput, SearchOutput]


def build_graph(
    settings: Settings | None = None,
    *,
    sinks: tuple[EventSink, ...] = (),
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    **parts: Unpack[GivenParts],
) -> SearchGraph:
    """Return the search as a compiled graph: invoke it, stream it, or make it a node of a graph of your own.

    Input and output are ``SearchInput`` and ``SearchOutput`` of :mod:`drpo_graph.search.state`. As a subgraph it uses
    the parent's checkpointer; its texts and its ledger stand in ``store``, else in the parent's store. Without either
    they are kept in memory for as long as the graph is, and a run does not survive its process. Called without a
    thread id, each call is a run of its own.

    Args:
        settings: What to do; models may also be named by the context at run time.
        sinks: Called with every event, besides LangGraph's custom stream.
        checkpointer: Where the graph's state is saved.
        store: Where texts and finished calls are saved.
        parts: What replaces ours, by the names that :class:`~drpo_graph.search.assembly.Parts` has: ``models`` by
            role, in place of the settings' model strings, ``selector``, ``critic`` (or a reward function, or several
            mixed with it), ``rewriter``, ``beam_policy``, ``example_retriever``, ``responder``, an app in the base
            model's place, and ``screen``.
    """
    given = take_parts(parts, "build_graph")
    host = Host(settings or Settings(), announce_resume, given, store=store, sinks=tuple(sinks))
    graph = StateGraph(SearchState, context_schema=CallerContext, input_schema=SearchInput, output_schema=SearchOutput)
    host.add_step(graph, start_run, SearchState, begins=True)
    for step in (score_beams, review, conclude):
        host.add_step(graph, step, SearchState)
    host.add_step(graph, select_metrics, MetricsTask)
    rollout = _build_rollout(host)
    add_subgraph(graph, "rollout", rollout, RolloutTask)
    add_subgraph(graph, "expand", _build_expand(host, rollout), ExpandTask)
    add_subgraph(graph, "validate", rollout, RolloutTask)
    graph.add_edge(START, "start_run")
    graph.add_conditional_edges("start_run", _route_start, ["rollout", "select_metrics"])
    for name in ("rollout", "select_metrics", "expand"):
        graph.add_edge(name, "score_beams")
    after_level = ["expand", "rollout", "select_metrics", "validate", "conclude"]
    graph.add_conditional_edges("score_beams", _route_review, [*after_level, "review"])
    graph.add_conditional_edges("review", _route_level, after_level)
    graph.add_edge("validate", "conclude")
    graph.add_conditional_edges("conclude", _route_end, ["validate", END])
    return cast(SearchGraph, compile_graph(graph, "drpo", checkpointer=checkpointer, store=store))


def _route_start(state: SearchState) -> list[Send]:
    """Run the root on its queries, and select the first level's metrics beside it."""
    return [*_send_rollouts(state, "rollout", [ROOT_ID], state["query_ids"]), *_send_prefetch(state)]


def _route_review(state: SearchState) -> list[Send] | str:
    """Pause for a review, or go on as decided."""
    return "review" if state.get("awaits_review") else _route_level(state)


def _route_level(state: SearchState) -> list[Send] | str:
    """Go on with a level, or with the same one again, with validation, or to the end."""
    if state["phase"] == "conclude":
        return "conclude"
    if state["phase"] == "validate":
        return _send_rollouts(state, "validate", state["contender_ids"], state["validation_ids"])
    if state["is_repeat"]:
        candidate_ids = [child["id"] for child in state["children"]]
        return [*_send_rollouts(state, "rollout", candidate_ids, state["query_ids"]), *_send_prefetch(state)]
    tasks: list[ExpandTask] = [
        {
            "run_id": state["run_id"],
            "level": state["level"],
            "beam_rank": place,
            "parent": parent,
            "query_ids": state["query_ids"],
            "selects_inline": state["selects_inline"],
        }
        for place, parent in enumerate(state["beam"])
    ]
    return [*(Send("expand", task) for task in tasks), *_send_prefetch(state)]


def _route_end(state: SearchState) -> list[Send] | str:
    """End, or go back to validation, whose rollouts were put aside to be asked for again."""
    return _route_level(state) if state["phase"] == "validate" and not state["rollouts"] else END


def _route_children(state: ExpandState) -> list[Send]:
    """Run every child on every query of the level."""
    children = [child["id"] for child in state["children"]]
    return _send_rollouts(state, "rollout", children, state["query_ids"], selects_inline=state["selects_inline"])


def _route_rollout(state: RolloutState) -> list[str]:
    """Select the query's metrics beside the response where they were not selected ahead."""
    return ["sample_errors", "select_metrics"] if state["selects_inline"] else ["sample_errors"]


def _send_rollouts(
    state: SearchState | ExpandState,
    node: str,
    candidate_ids: list[str],
    query_ids: list[str],
    *,
    selects_inline: bool = True,
) -> list[Send]:
    tasks: list[RolloutTask] = [
        {
            "run_id": state["run_id"],
            "level": state["level"],
            "candidate_id": candidate_id,
            "query_id": query_id,
            "selects_inline": selects_inline,
        }
        for candidate_id in candidate_ids
        for query_id in query_ids
    ]
    return [Send(node, task) for task in tasks]


def _send_prefetch(state: SearchState) -> list[Send]:
    tasks: list[MetricsTask] = [{"run_id": state["run_id"], "query_id": query_id} for query_id in state["prefetch_ids"]]
    return [Send("select_metrics", task) for task in tasks]


def _build_rollout(host: Host) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(RolloutState, input_schema=RolloutTask, output_schema=RolloutOutput)
    for step in (sample_errors, select_metrics, critique):
        host.add_step(graph, step, RolloutState)
    graph.add_conditional_edges(START, _route_rollout, ["sample_errors", "select_metrics"])
    graph.add_edge("sample_errors", "critique")
    graph.add_edge("select_metrics", "critique")
    graph.add_edge("critique", END)
    # No checkpoints inside a rollout: its calls are in the ledger, and its end is saved by the graph around it.
    return graph.compile(name="rollout", checkpointer=False)


def _build_expand(
    host: Host, rollout: CompiledStateGraph[Any, Any, Any, Any]
) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(ExpandState, input_schema=ExpandTask, output_schema=ExpandOutput)
    host.add_step(graph, rewrite_prompts, ExpandState)
    add_subgraph(graph, "rollout", rollout, RolloutTask)
    graph.add_edge(START, "rewrite_prompts")
    graph.add_conditional_edges("rewrite_prompts", _route_children, ["rollout"])
    graph.add_edge("rollout", END)
    return graph.compile(name="expand")
