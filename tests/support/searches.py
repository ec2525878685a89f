"""Run the graph on a synthetic world in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Checkpointer

from drpo_graph.events.emitter import EventSink
from drpo_graph.graph import build_graph
from drpo_graph.models.balancer import Balancer, Replica
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.endpoint_gate import gate_for
from drpo_graph.records import ROLES, RunResult
from drpo_graph.search.assembly import Parts, build_components, build_context
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.session import RunContext
from drpo_graph.settings.settings import RoleSettings, Settings
from drpo_graph.storage.archive import Archive
from tests.support.oracle import Oracle, OracleTransport
from tests.support.world import INITIAL_PROMPT, World

FAKE_ROLE = RoleSettings(model="fake:world")


def fake_settings(**values: Any) -> Settings:
    """Return settings whose four roles are the synthetic world."""
    optimizer = RoleSettings(model="fake:world", temperature=0.7, top_p=0.95)
    roles = {"base": FAKE_ROLE, "metrics": FAKE_ROLE, "critic": FAKE_ROLE, "optimizer": optimizer}
    return Settings(**{"initial_prompt": INITIAL_PROMPT, **roles, **values})


def oracle_context(
    settings: Settings,
    transport: OracleTransport,
    *,
    store: BaseStore | None = None,
    sinks: tuple[EventSink, ...] = (),
    **parts: Any,
) -> RunContext:
    """Return a run context whose models are the synthetic world in this process."""
    # Any resolvable model will do: its client is replaced.
    placeholder = settings.model_copy(update={role: RoleSettings(model="vllm:unused") for role in ROLES})
    context = build_context(placeholder, store=store, sinks=sinks)
    gate = partial(gate_for, "oracle", max_concurrency=64, requests_per_second=None)
    balancer = Balancer((Replica("oracle", transport, gate),))
    clients = {role: ModelClient(role, settings.role(role), balancer) for role in ROLES}
    components = build_components(settings, context.prompts, Parts(**parts))
    return replace(context, settings=settings, clients=clients, components=components)


@dataclass
class SearchRun:
    """A finished search with everything a test looks at."""

    result: RunResult
    transport: OracleTransport
    archive: Archive
    context: RunContext


async def run_search(
    settings: Settings,
    world: World,
    queries: Sequence[str],
    *,
    validation: Sequence[str] = (),
    thread_id: str = "test",
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    sinks: tuple[EventSink, ...] = (),
    transport: OracleTransport | None = None,
    **parts: Any,
) -> SearchRun:
    """Return a whole search through the graph."""
    store = store or InMemoryStore()
    transport = transport or OracleTransport(Oracle(world))
    context = oracle_context(settings, transport, store=store, sinks=sinks, **parts)
    graph = build_graph(settings, checkpointer=checkpointer)
    output = await graph.ainvoke(
        {"queries": list(queries), "validation_queries": list(validation)},
        {"configurable": {"thread_id": thread_id}, "recursion_limit": RECURSION_LIMIT},
        context=context,  # type: ignore[arg-type]
        durability="async" if checkpointer else None,
    )
    result = RunResult.model_validate(output["result"])
    return SearchRun(result=result, transport=transport, archive=Archive(store, thread_id), context=context)
