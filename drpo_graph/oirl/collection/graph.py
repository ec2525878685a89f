"""The graph of a collection: this file alone knows its shape. Routing functions are pure and total.

::

    START -> start -> advance -> trial* -> advance ... -> conclude -> END      one Send per trial, so many a step
"""

from collections.abc import Mapping
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, Send

from drpo_graph.events.emitter import EventSink
from drpo_graph.models.given_models import GivenModel
from drpo_graph.oirl.collection.nodes import Collector, announce_resume
from drpo_graph.oirl.collection.plan import STEP_SIZE
from drpo_graph.oirl.collection.state import CollectionInput, CollectionOutput, CollectionState, TrialTask
from drpo_graph.parts.checkers import Checker, CheckFunction, as_checker
from drpo_graph.records import Role
from drpo_graph.search.assembly import Parts
from drpo_graph.search.hosting import Host
from drpo_graph.settings.caller_settings import CallerContext
from drpo_graph.settings.settings import Settings

CollectionGraph = CompiledStateGraph[CollectionState, Any, CollectionInput, CollectionOutput]


def build_collection_graph(
    settings: Settings | None = None,
    *,
    checker: str | CheckFunction | Checker = "numeric",
    step_size: int = STEP_SIZE,
    models: Mapping[Role, GivenModel] | None = None,
    sinks: tuple[EventSink, ...] = (),
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
) -> CollectionGraph:
    """Return the collection of demonstrations as a compiled graph.

    Args:
        settings: Names the model that answers, as role ``base``; for the checker ``critic``, those of ``metrics`` and
            ``critic`` too.
        checker: Judges the replies.
        step_size: Trials of one step: a checkpoint names so many, and the next step waits for the last of them.
        models: Chat model instances by role, in place of the settings' model strings.
        sinks: Called with every event, besides LangGraph's custom stream.
        checkpointer: Where the graph's state is saved.
        store: Where texts, outcomes and finished calls are saved.

    Raises:
        SettingsError: the checker is none.
    """
    checker = as_checker(checker)
    host = Host(
        settings or Settings(),
        announce_resume,
        Parts(models=models),
        "oirl",
        store=store,
        sinks=tuple(sinks),
        optional_roles=find_optional_roles(checker),
    )
    nodes = Collector(checker, step_size=step_size)
    graph = StateGraph(
        CollectionState, context_schema=CallerContext, input_schema=CollectionInput, output_schema=CollectionOutput
    )
    host.add_step(graph, nodes.start, CollectionState, begins=True)
    for step in (nodes.advance, nodes.conclude):
        host.add_step(graph, step, CollectionState)
    host.add_step(graph, nodes.trial, TrialTask)
    graph.add_edge(START, "start")
    graph.add_edge("start", "advance")
    graph.add_conditional_edges("advance", _route_trials, ["trial", "conclude"])
    graph.add_edge("trial", "advance")
    graph.add_edge("conclude", END)
    compiled: CollectionGraph = graph.compile(checkpointer=checkpointer, store=store, name="drpo_oirl_collect")
    return compiled


def find_optional_roles(checker: Checker) -> frozenset[Role]:
    """Return the roles that need no model: nobody writes prompts, and most checkers ask nobody."""
    roles: set[Role] = {"optimizer"} if checker.function is None else {"optimizer", "metrics", "critic"}
    return frozenset(roles)


def _route_trials(state: CollectionState) -> list[Send] | str:
    tasks: list[TrialTask] = [
        {"run_id": state["run_id"], "placement": state["placement"], "unit": unit} for unit in state["units"]
    ]
    return [Send("trial", task) for task in tasks] or "conclude"
