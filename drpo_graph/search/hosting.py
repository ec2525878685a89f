"""Our nodes in anybody's graph: they find their context and a store, whoever runs it."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Checkpointer
from pydantic import BaseModel, ConfigDict, create_model

from drpo_graph.errors import RunInterruptedError, SettingsError, UsageError
from drpo_graph.events.emitter import EventSink
from drpo_graph.events.transformer import EventTransformer
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.tracing import calling_for
from drpo_graph.records import Role, digest_json
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.embedding import find_embedding
from drpo_graph.search.run_names import CHECKPOINTER, SAVER_AROUND, find_saver, find_state, find_store
from drpo_graph.search.session import RunContext, RunSession, keep_session
from drpo_graph.settings.caller_settings import CallerContext, apply_callers
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.run_list import RunKind

RECURSION_LIMIT = 10_000
"""Supersteps a search may take; LangChain passes 25 down from tools and runnables, which ends a run at level 20."""

_DURABILITY = "__pregel_durability"
"""How LangGraph hands the caller's ``durability`` down; its argument would warn where there are no checkpoints."""


_PLACE = ("run_id", "level", "candidate_id", "query_id")
"""What a node's state tells of what its calls are made for."""

_MAX_CONTEXTS = 16
"""Contexts kept that no node works with: each caller's choice of settings needs one."""

Announce = Callable[[RunSession, RunContext, Mapping[str, Any]], Awaitable[None]]
"""Tells that a run goes on from a graph's stored state."""

Step = Callable[[Any, Runtime[RunContext]], Awaitable[Any]]
"""A node: an asynchronous function of the state and the runtime, which returns changed keys."""


@dataclass(slots=True)
class _OwnContext:
    """A context that a graph has made for callers who chose the same settings."""

    context: RunContext
    num_nodes: int = 0
    """How many nodes work with it just now."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a graph falls back to when its caller hands over no context or store of ours."""

    settings: Settings
    announce: Announce
    parts: Parts = field(default_factory=Parts)
    kind: RunKind = "search"
    store: BaseStore | None = None
    sinks: tuple[EventSink, ...] = ()
    optional_roles: frozenset[Role] = frozenset()
    """Need no model."""
    _fallback_store: BaseStore = field(default_factory=InMemoryStore)
    _contexts: PerLoop[dict[str, _OwnContext]] = field(default_factory=lambda: PerLoop(dict))

    def add_step(
        self, graph: StateGraph[Any, Any, Any, Any], node: Step, schema: type[Any], *, begins: bool = False
    ) -> None:
        """Add a node, under its own name, that finds our context and a store, whoever runs the graph.

        Args:
            graph: The graph.
            node: The node.
            schema: Its state.
            begins: Whether a run begins with it, and has no name before.
        """

        async def run(state: Any, runtime: Runtime[Any]) -> Any:
            embedding = find_embedding()
            store = embedding.store if embedding else runtime.store or self.store or find_store(state)
            store = store or self._fallback_store
            # What a node that begins a run is given may tell of a former one, of the same thread.
            run_id = "" if begins else state.get("run_id", "")
            with self._lend_context(runtime.context) as lent:
                context = embedding.lend(lent, self.kind) if embedding else lent
                own = runtime.override(context=context, store=store)
                try:
                    with calling_for(**{name: state[name] for name in _PLACE if state.get(name) is not None}):
                        if run_id not in context.told and run_id:
                            await self._tell_resume(run_id, context, store)
                        update = await node(state, own)
                    if begins:
                        context.told.add(update["run_id"])
                except GraphBubbleUp:
                    raise
                except Exception as error:
                    # Merely stopped by a sibling's failure, which tells why; LangGraph may see this end first.
                    cause = error.__cause__ if isinstance(error, RunInterruptedError) else None
                    told = cause if isinstance(cause, Exception) else error
                    # The siblings are about to be cancelled: what they have sent is paid for, and is kept before that.
                    await context.abandon(state.get("run_id", ""), error)
                    if embedding is not None:
                        # What stopped them all is no failure of the run's own.
                        embedding.note_failure(run_id, error if context.stop.reason is not None else told)
                    if told is not error:
                        raise told from None
                    raise
                if embedding is not None:
                    await embedding.flush()
                return update

        graph.add_node(node.__name__, run, input_schema=schema)

    async def _tell_resume(self, run_id: str, context: RunContext, store: BaseStore) -> None:
        """Tell, once in a process, that a run goes on; its tasks that begin beside one another wait for that."""
        session = await context.session(run_id, store)

        async def tell() -> None:
            values = await find_state(run_id)
            if values is not None and run_id not in context.told:
                await self.announce(session, context, values)
            context.told.add(run_id)

        await session.shared_work.share("tell that it goes on", tell)

    @contextmanager
    def _lend_context(self, given: object) -> Iterator[RunContext]:
        """Give a node the context to use: the given one if it is ours, else one of our own for this event loop."""
        if isinstance(given, RunContext):
            yield given
            return
        if given is not None and isinstance(given, str | int | float | list | tuple):
            raise SettingsError(f"The context is {type(given).__name__}: expected settings by name, {{'depth': 10}}.")
        # Any other object is that of a graph around ours, and says nothing to it.
        chosen = given.given if isinstance(given, CallerContext) else {}
        contexts, name = self._contexts.get(), digest_json(chosen)
        own = contexts.pop(name, None) or _OwnContext(self._build(chosen))
        contexts[name] = own
        own.num_nodes += 1
        try:
            yield own.context
        finally:
            own.num_nodes -= 1
            # The longest unused ones; a run that needs one again finds all it has done in its store.
            idle = [one for one in contexts if not contexts[one].num_nodes]
            for one in idle[: max(len(contexts) - _MAX_CONTEXTS, 0)]:
                del contexts[one]

    def _build(self, chosen: Mapping[str, object]) -> RunContext:
        settings = apply_callers(self.settings, chosen) if chosen else self.settings
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
        # Inside a graph without checkpoints of its own, nothing tells of the one around it.
        SAVER_AROUND.set(find_saver() or SAVER_AROUND.get())
        keep_session()
        # The caller's "sync" fails in a graph without checkpoints, and our calls are durable before their nodes are.
        return await inner.ainvoke(state, {**config, "configurable": {**own, _DURABILITY: "async"}})

    graph.add_node(name, run, input_schema=schema)


class AsyncGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph that says what to call where LangGraph's synchronous calls cannot work.

    Its streams of the third protocol show its output alone, as all other ways to run it do.
    """

    def invoke(self, *given: Any, **how: Any) -> Any:
        """Refuse: the graph's nodes are asynchronous.

        Raises:
            UsageError: always; says what to call.
        """
        raise self._refuse("invoke", "ainvoke")

    def stream(self, *given: Any, **how: Any) -> Any:
        """Refuse: the graph's nodes are asynchronous.

        Raises:
            UsageError: always; says what to call.
        """
        raise self._refuse("stream", "astream")

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **how: Any) -> Any:
        """Stream events, by any of LangGraph's protocols."""
        if how.get("version") == "v3":
            how.setdefault("output_keys", self.output_channels)
        return super().astream_events(input, config, **how)

    def as_tool(self, args_schema: type[BaseModel] | None = None, **how: Any) -> BaseTool:
        """Return the graph as a tool, whose arguments may be left out where the graph's input may lack them."""
        # LangChain takes every field of a TypedDict for required.
        return super().as_tool(args_schema or self._make_arguments(), **how)

    def _make_arguments(self) -> type[BaseModel]:
        schema: Any = self.builder.input_schema
        hints = get_type_hints(schema)
        fields: dict[str, Any] = {
            name: (hint, ... if name in schema.__required_keys__ else None) for name, hint in hints.items()
        }
        # A name that is misspelt would be left out without a word, and money be spent on something else.
        return create_model(f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def _refuse(self, called: str, instead: str) -> UsageError:
        return UsageError(
            f"The graph {self.name!r} is asynchronous, and {called}() is not: call {instead}(), of the graph around it "
            f"where there is one. In a program without an event loop: asyncio.run(graph.ainvoke(...))."
        )


def compile_graph(
    graph: StateGraph[Any, Any, Any, Any], name: str, *, checkpointer: Checkpointer, store: BaseStore | None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return one of our graphs, compiled; its streams of the third protocol deliver our events."""
    compiled = graph.compile(checkpointer=checkpointer, store=store, name=name, transformers=[EventTransformer])
    # LangGraph's builder makes its own class and no other, and `with_config` copies whichever it is.
    compiled.__class__ = AsyncGraph
    return compiled


def check_can_pause() -> None:
    """Do nothing where a pause can be kept.

    Raises:
        SettingsError: there is no checkpointer: the run would end at its first pause, and what it has paid for be lost.
    """
    # Should it have another name one day, nothing is checked.
    if get_config().get("configurable", {}).get(CHECKPOINTER, "") is None:
        raise SettingsError(
            "approve: a run can pause for a review only with a checkpointer. Give build_graph(), or the graph around "
            "it, one."
        )
