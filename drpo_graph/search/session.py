"""What a run needs and never saves: settings, clients, replaceable parts, sinks, and its open ledger and archive."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from pydantic import JsonValue

from drpo_graph.calls.budget import Budget, Clock
from drpo_graph.calls.channel import CallChannel, Learned
from drpo_graph.calls.client_setup import find_capabilities, fit_client, make_learned, patience_of
from drpo_graph.calls.embedding import EmbeddingCalls
from drpo_graph.calls.ledger import Ledger
from drpo_graph.calls.roles import Models, RoleModel
from drpo_graph.events.emitter import Emitter, EventSink, Numbering
from drpo_graph.models.capabilities import Capabilities, CapabilityCache
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.outages import never_ends
from drpo_graph.parts.protocols import Components
from drpo_graph.prompts.library import PromptLibrary
from drpo_graph.records import Role
from drpo_graph.search.fingerprint import PARTS, check_same, fingerprint_parts, make_fingerprints
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import SingleFlight, StopSignal, note_seen
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.checkpoint_store import CheckpointStore


@dataclass(frozen=True, slots=True)
class RunSession:
    """One run's open records and bound models, in one process."""

    run_id: str
    archive: Archive
    ledger: Ledger
    models: Models
    emitter: Emitter
    embeddings: EmbeddingCalls
    """Embeds texts at endpoints, as calls of the run."""
    shared_work: SingleFlight[str, None] = field(default_factory=SingleFlight)
    """What several tasks of a step need, by name."""

    def warn(self, message: str) -> None:
        """Tell what affects the result, or may."""
        self.emitter.warn(message)


_kept: ContextVar[dict[tuple[int, str], asyncio.Task[RunSession]] | None] = ContextVar("_kept", default=None)
"""The sessions of the subgraph that runs, by context and run."""


def keep_session() -> None:
    """Let all that this task and what it starts do belong to one session of a run.

    After a failure LangGraph lets the failed node's siblings go on for a moment: they must not open the run anew, and
    make calls that nobody waits for.
    """
    if _kept.get() is None:
        _kept.set({})


@dataclass(frozen=True, slots=True)
class RunContext:
    """The live objects of a process's runs; handed to the nodes through LangGraph's ``Runtime``."""

    settings: Settings
    prompts: PromptLibrary
    clients: Mapping[Role, ModelClient]
    components: Components
    store: BaseStore | None = None
    """Where texts and the ledger stand; the graph's own store when absent."""
    sinks: Sequence[EventSink] = ()
    is_streamed: bool = True
    """Whether events go into LangGraph's custom stream as well; rendering them for nobody costs."""
    accepts_changes: bool = False
    """Whether a run may go on with other settings, prompts or data than it was started with."""
    stop: StopSignal = field(default_factory=StopSignal)
    """Stops all runs of this context; each session has a signal of its own besides."""
    has_ended: Callable[[str], bool] = never_ends
    """Whether the server at an endpoint is known to be gone for good."""
    numbering: Numbering | None = None
    """Numbers the events of a context's only run; where there is none, each run is numbered for itself."""
    number: Callable[[str], Numbering] = lambda _: Numbering()
    """Makes what numbers a run's events in this process, where nothing else does."""
    clock: Clock = time.monotonic
    """Seconds that only grow: the budget's time is measured on it."""
    told: set[str] = field(default_factory=set)
    """Runs under way whose beginning, or whose going on, was told in this process."""
    _sessions: dict[str, asyncio.Task[RunSession]] = field(default_factory=dict)
    _numberings: dict[str, Numbering] = field(default_factory=dict)
    """Of runs that are not finished: what a run that failed here still tells, or tells again, goes on from there."""

    async def session(self, run_id: str, store: BaseStore | None = None) -> RunSession:
        """Return a run's session; the first call of a process opens it and reads the run's ledger.

        What works under :func:`keep_session` gets the one that it got first, be it abandoned meanwhile.
        """
        kept, place = _kept.get(), (id(self), run_id)
        task = (kept or {}).get(place) or self._sessions.get(run_id)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._open(self.archive_of(run_id, store)))
            task.add_done_callback(note_seen)
            self._sessions[run_id] = task
        if kept is not None:
            kept[place] = task
        return await asyncio.shield(task)

    def archive_of(self, run_id: str, store: BaseStore | None = None) -> Archive:
        """Return a run's archive: in this context's store, else in the given one."""
        chosen = self.store if self.store is not None else store
        assert chosen is not None, "build_graph gives every graph a store"
        # A second run of a thread is given the store of the first, in which its own records would not be looked for.
        return Archive(chosen.of(run_id) if isinstance(chosen, CheckpointStore) else chosen, run_id)

    def close_session(self, run_id: str) -> None:
        """Forget a finished run."""
        self._sessions.pop(run_id, None)
        self.told.discard(run_id)
        self._numberings.pop(run_id, None)

    async def abandon(self, run_id: str, error: Exception) -> None:
        """End a failed run's session: no further call begins, and those in flight are committed before this returns."""
        for session in self.open_sessions():
            if session.run_id == run_id:
                session.ledger.stop.request("The run has failed.", error)
                await session.ledger.drain()
        # Its siblings, which are still to be cancelled, are not to tell that it goes on.
        self._sessions.pop(run_id, None)

    async def drain(self) -> None:
        """Return when what all runs have in flight is committed or has failed."""
        for session in self.open_sessions():
            await session.ledger.drain()

    def open_sessions(self) -> list[RunSession]:
        """Return the sessions that are open in this process."""
        done = (task for task in self._sessions.values() if task.done() and not task.cancelled())
        return [task.result() for task in done if task.exception() is None]

    def fingerprints(self) -> dict[str, str]:
        """Return what identifies this context: settings, prompts and parts, each hashed."""
        models = {role: client.settings.model for role, client in self.clients.items()}
        return make_fingerprints(self.settings, self.prompts, self.components, models=models)

    def search_fingerprints(self) -> dict[str, str]:
        """Return the same with what identifies parts of the user's own."""
        return {**self.fingerprints(), PARTS: fingerprint_parts(self.components)}

    def check_fingerprints(self, started_with: Mapping[str, str]) -> None:
        """Do nothing when a run was started with this context's settings, prompts and parts.

        Raises:
            FingerprintMismatchError: it was not, and changes are not accepted.
        """
        if not self.accepts_changes:
            own = self.search_fingerprints() if PARTS in started_with else self.fingerprints()
            check_same(own, started_with)

    async def _open(self, archive: Archive) -> RunSession:
        run_id = archive.run_id
        ledger = Ledger(archive, self.stop.child(), Budget(self.settings, clock=self.clock))
        await ledger.load()
        numbering = self.numbering or self._numberings.get(run_id) or self.number(run_id)
        self._numberings[run_id] = numbering
        numbering.begin(ledger.budget.num_former)
        numbering.elapsed_s = lambda: ledger.budget.elapsed_s
        if not numbering.is_logged:
            # The next process is to see that there was this one: nothing else tells it where to go on.
            await ledger.budget.save()
        emitter = Emitter(run_id, self.sinks, numbering=numbering, is_streamed=self.is_streamed)
        known: dict[Role, Capabilities | None] = {}
        await ledger.stop.guard(self._ask_endpoints(archive, emitter, known))
        shared = self._share_learned(await archive.get_all("learned"), known)
        models = Models(
            **{
                role: RoleModel(
                    CallChannel(
                        client=fit_client(client, known.get(role)),
                        settings=self.settings,
                        ledger=ledger,
                        archive=archive,
                        emitter=emitter,
                        learned=shared[client.served],
                        has_ended=self.has_ended,
                    ),
                    self.prompts,
                )
                for role, client in self.clients.items()
            }
        )
        embeddings = EmbeddingCalls(self.settings, ledger, archive, emitter, self.has_ended)
        return RunSession(
            run_id=run_id, archive=archive, ledger=ledger, models=models, emitter=emitter, embeddings=embeddings
        )

    def _share_learned(
        self, stored: Mapping[str, Mapping[str, JsonValue]], known: Mapping[Role, Capabilities | None]
    ) -> dict[str, Learned]:
        """Return what is known of each model where it is served: the roles that share one learn together."""
        shared: dict[str, Learned] = {}
        for role, client in self.clients.items():
            # Runs that were started before roles shared it kept it by role.
            former = stored.get(client.settings.model) or stored.get(f"{role}/{client.settings.model}")
            if client.served not in shared or former is not None:
                shared[client.served] = make_learned(former, known.get(role))
        return shared

    async def _ask_endpoints(self, archive: Archive, emitter: Emitter, known: dict[Role, Capabilities | None]) -> None:
        """Fill in what each role's servers can do: asked once where several roles share a model."""
        roles_by_served: dict[str, list[Role]] = {}
        for role, client in self.clients.items():
            roles_by_served.setdefault(client.served, []).append(role)
        find = partial(
            find_capabilities,
            archive=archive,
            cache=CapabilityCache(),
            may_ask=self.settings.probe,
            patience=patience_of(self.settings, emitter.warn),
        )
        asked = (find(self.clients[roles[0]], roles=roles) for roles in roles_by_served.values())
        for roles, found in zip(roles_by_served.values(), await asyncio.gather(*asked), strict=True):
            known.update(dict.fromkeys(roles, found))


async def session_of(runtime: Runtime[RunContext], run_id: str) -> RunSession:
    """Return the session of the run that a node works for."""
    return await runtime.context.session(run_id, runtime.store)
