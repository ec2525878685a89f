"""Our nodes in anybody's graph: they find their context and a store, whoever runs it."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Checkpointer

from drpo_graph.errors import RunInterruptedError, SettingsError
from drpo_graph.events.emitter import EventSink
from drpo_graph.events.transformer import EventTransformer
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.records import Role, digest_json
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.session import RunContext
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.settings import Settings

RECURSION_LIMIT = 10_000
"""Supersteps a search may take; LangChain passes 25 down from tools and runnables, which ends a run at level 20."""

_UNNAMED_RUN = "run"

_DURABILITY = "__pregel_durability"
"""How LangGraph hands the caller's ``durability`` down; its argument would warn where there are no checkpoints."""


Step = Callable[[Any, Runtime[RunContext]], Awaitable[Any]]
"""A node: an asynchronous function of the state and the runtime, which returns changed keys."""


@dataclass(frozen=True)
class ContextOverrides:
    """What a caller without live objects, such as LangGraph's server, may hand over as context: JSON only."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings by name, on top of those that the graph was built with."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a graph falls back to when its caller hands over no context or store of ours."""

    settings: Settings
    parts: Parts = field(default_factory=Parts)
    store: BaseStore | None = None
    sinks: tuple[EventSink, ...] = ()
    optional_roles: frozenset[Role] = frozenset()
    """Need no model."""
    _fallback_store: BaseStore = field(default_factory=InMemoryStore)
    _contexts: PerLoop[dict[str, RunContext]] = field(default_factory=lambda: PerLoop(dict))

    def add_step(self, graph: StateGraph[Any, Any, Any, Any], node: Step, schema: type[Any]) -> None:
        """Add a node, under its own name, that finds our context and a store, whoever runs the graph."""

        async def run(state: Any, runtime: Runtime[Any]) -> Any:
            store = runtime.store or self.store or self._fallback_store
            own = runtime.override(context=self._find_context(runtime.context), store=store)
            try:
                return await node(state, own)
            except GraphBubbleUp:
                raise
            except Exception as error:
                # The siblings are about to be cancelled: what they have sent is paid for, and is kept before that.
                await own.context.abandon(state.get("run_id", ""), error)
                if isinstance(error, RunInterruptedError) and isinstance(error.__cause__, Exception):
                    # Merely stopped by a sibling's failure, and LangGraph may see this end first: that one tells why.
                    raise error.__cause__ from None
                raise

        graph.add_node(node.__name__, run, input_schema=schema)

    def _find_context(self, given: object) -> RunContext:
        """Return the context to use: the given one if it is ours, else one of our own for this event loop."""
        if isinstance(given, RunContext):
            return given
        overrides = given.settings if isinstance(given, ContextOverrides) else {}
        contexts = self._contexts.get()
        name = digest_json(overrides)
        if name not in contexts:
            contexts[name] = self._build(overrides)
        return contexts[name]

    def _build(self, overrides: Mapping[str, object]) -> RunContext:
        settings = self.settings
        if overrides:
            settings = build_settings(merge_settings(settings.model_dump(exclude_unset=True), overrides))
            if settings.reward != self.settings.reward:
                # A caller may be anybody who reaches LangGraph's server, and this names code to be imported.
                raise SettingsError("reward: it can be set where the graph is built, not by a caller of it.")
        return assemble(settings, self.parts, store=self.store, sinks=self.sinks, optional_roles=self.optional_roles)


def add_subgraph(
    graph: StateGraph[Any, Any, Any, Any], name: str, inner: CompiledStateGraph[Any, Any, Any, Any], schema: type[Any]
) -> None:
    """Add a compiled graph as a node that hands back what its output schema has, on every surface.

    A compiled graph that is itself the node is streamed where somebody listens to events (``astream_events``,
    ``astream_log``), and LangGraph then writes its whole state into the graph around it.
    """

    async def run(state: Any, config: RunnableConfig) -> Any:
        own = config.get("configurable", {})
        # The caller's "sync" fails in a graph without checkpoints, and our calls are durable before their nodes are.
        return await inner.ainvoke(state, {**config, "configurable": {**own, _DURABILITY: "async"}})

    graph.add_node(name, run, input_schema=schema)


class _OutputGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph whose streams of the third protocol show its output alone, as all other ways to run it do."""

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **how: Any) -> Any:
        """Stream events, by any of LangGraph's protocols."""
        if how.get("version") == "v3":
            how.setdefault("output_keys", self.output_channels)
        return super().astream_events(input, config, **how)


def compile_graph(
    graph: StateGraph[Any, Any, Any, Any], name: str, *, checkpointer: Checkpointer, store: BaseStore | None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return one of our graphs, compiled; its streams of the third protocol deliver our events."""
    compiled = graph.compile(checkpointer=checkpointer, store=store, name=name, transformers=[EventTransformer])
    # LangGraph's builder makes its own class and no other, and `with_config` copies whichever it is.
    compiled.__class__ = _OutputGraph
    return compiled


def derive_run_id() -> str:
    """Return the thread's id; inside a parent graph, with a mark of the place that the parent runs this graph at.

    A run without either gets an id that no other has.
    """
    configurable = get_config().get("configurable", {})
    # Our own task is the last part of the namespace; what is before it is the parent's task, stable over resumes.
    place = "|".join(str(configurable.get("checkpoint_ns", "")).split("|")[:-1])
    thread_id = configurable.get("thread_id")
    if not thread_id and not place:
        # Nothing can resume it, and its records may be kept beside those of a former call: it must not find them.
        return f"{_UNNAMED_RUN}-{secrets.token_hex(8)}"
    thread_id = str(thread_id or _UNNAMED_RUN)
    return f"{thread_id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}" if place else thread_id


def check_can_pause() -> None:
    """Do nothing where a pause can be kept.

    Raises:
        SettingsError: there is no checkpointer: the run would end at its first pause, and what it has paid for be lost.
    """
    # LangGraph says so to its nodes under this name alone; should it have another one day, nothing is checked.
    if get_config().get("configurable", {}).get("__pregel_checkpointer", _UNNAMED_RUN) is None:
        raise SettingsError(
            "approve: a run can pause for a review only with a checkpointer. Give build_graph(), or the graph around "
            "it, one."
        )
