"""Runs inside a graph of an app: kept, listed, drained and told of as those that ``optimize`` carries out."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.store.base import BaseStore

from drpo_graph.errors import CheckpointError, DRPOError, RunExistsError, RunInterruptedError
from drpo_graph.events.emitter import EventSink, Numbering
from drpo_graph.events.log import find_last_number
from drpo_graph.events.schema import (
    CollectionFinished,
    CollectionStarted,
    Event,
    ICLFinished,
    ICLStarted,
    LevelStarted,
    ReviewDecided,
    ReviewRequested,
    RunFinished,
    RunStarted,
    RunStopped,
)
from drpo_graph.records import RunStatus
from drpo_graph.runs.beginnings import make_record
from drpo_graph.runs.logs import open_run_files
from drpo_graph.runs.signals import handle_signals
from drpo_graph.runs.work import RunOptions, at_home, reason_of
from drpo_graph.safety.redaction import redact
from drpo_graph.search.embedding import EMBEDDING_KEY, Embedding
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import StopSignal
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.run_list import RunKind, RunRecord, RunRegistry

logger = logging.getLogger(__name__)

_BEGINS = (RunStarted, ICLStarted, CollectionStarted, LevelStarted, ReviewDecided)
_ENDS = (RunFinished, ICLFinished, CollectionFinished)


@dataclass(frozen=True, slots=True)
class EmbeddedRun:
    """What an app compiles a graph of its own with, and invokes it with, while it holds the graph's thread."""

    thread_id: str
    checkpointer: BaseCheckpointSaver[str]
    store: BaseStore
    config: RunnableConfig
    """To invoke the graph with; may be added to."""
    has_begun: bool
    """Whether the thread has a checkpoint: invoked with ``None``, the graph goes on from it."""


@asynccontextmanager
async def embedded_run(thread_id: str, *, options: RunOptions | None = None) -> AsyncIterator[EmbeddedRun]:
    """Hold a thread of an app's own graph, for graphs of ours that run in it.

    Each run of ours in it is listed, by a name of its own that begins with the thread's, has its events and its folder,
    and tells, when the thread goes on, that it does. However the block is left, calls under way are finished and
    committed first; one that is cancelled meanwhile, too, is left at once.

    Args:
        thread_id: The thread of the app's graph.
        options: Where it is kept, who is told, and whether signals are handled, as for ``optimize``; below ``log_dir``
            each run has a folder.

    Raises:
        RunLockedError: another process works on the thread.
        RunExistsError: it is the name of a run that is not in a graph of an app.
        RunInterruptedError: a signal has stopped what was under way.
        CheckpointError: the checkpoint cannot be opened or written.
    """
    options, thread_id = options or RunOptions(), check_thread_id(thread_id)
    async with find_storage(options.checkpoint).open_run(thread_id) as checkpoint:
        registry = RunRegistry(checkpoint.store)
        if await registry.has(thread_id) and (found := await registry.find(thread_id)).embedded_in is None:
            raise RunExistsError(f"Run {thread_id!r} is not in a graph of an app. {found.way_on} Take another name.")
        own: Any = {"configurable": {"thread_id": thread_id}}
        has_begun = await checkpoint.saver.aget_tuple(own) is not None
        with ExitStack() as files:
            work = _Embedded(thread_id, checkpoint, options, files)
            config: RunnableConfig = {
                "configurable": {"thread_id": thread_id, EMBEDDING_KEY: work},
                "recursion_limit": RECURSION_LIMIT,
            }
            given = EmbeddedRun(thread_id, checkpoint.saver, checkpoint.store, config, has_begun)
            try:
                with handle_signals(work, enabled=options.handles_signals, cancels_idle=True):
                    yield given
            except BaseException as error:
                reason = work.stop.reason
                is_at_once = reason is not None and isinstance(error, asyncio.CancelledError)
                await work.end(error, drains=not is_at_once)
                task = asyncio.current_task()
                if is_at_once and reason is not None and task is not None:
                    # A signal has cancelled it, not whoever waits for it.
                    task.uncancel()
                    raise RunInterruptedError(reason) from error
                raise
            await work.end(None)


@dataclass(slots=True)
class _Listed:
    """One run, as this process knows it."""

    record: RunRecord
    is_stored: bool = False
    """Whether the list tells what the record does."""
    is_looked_up: bool = False
    """Whether the record has what the list told of it before."""
    error: Exception | None = None
    """Why it has stopped."""
    sinks: tuple[EventSink, ...] = ()
    """Write its files."""
    last_seq: int = 0
    """Number of its last event."""
    elapsed_s: float = 0.0
    """What that told."""


class _Embedded(Embedding):
    """One process's hold on an app's thread."""

    def __init__(self, thread_id: str, checkpoint: Checkpoint, options: RunOptions, files: ExitStack) -> None:
        self.store = checkpoint.store
        self.stop = StopSignal()
        self._thread_id = thread_id
        self._checkpoint = checkpoint
        self._options = options
        # The app's code may go to another working folder meanwhile.
        self._folder = (options.log_dir or find_storage(options.checkpoint).folder).absolute()
        self._files = files
        self._registry = RunRegistry(checkpoint.store)
        self._sinks = checkpoint.guard(self.stop, tuple(at_home(sink) for sink in options.sinks))
        self._lent: dict[int, tuple[RunContext, RunContext]] = {}
        """By the id of a context that was given, which is kept beside what was made of it."""
        self._runs: dict[str, _Listed] = {}
        self._lock = asyncio.Lock()

    def lend(self, context: RunContext, kind: RunKind) -> RunContext:
        """Return the context, bound to this place, its sinks and its stop signal: always the same for the same one."""
        if id(context) not in self._lent:
            bound = replace(
                context,
                store=self.store,
                sinks=(*context.sinks, partial(self._hear, context.settings, kind), *self._sinks),
                has_ended=self._options.has_ended,
                stop=self.stop,
                told=set(),
                _sessions={},
                number=self._number,
                _numberings={},
            )
            self._lent[id(context)] = (context, bound)
        return self._lent[id(context)][1]

    def open_sessions(self) -> list[RunSession]:
        """Return the sessions of all runs that are under way."""
        return [session for _, context in self._lent.values() for session in context.open_sessions()]

    def note_failure(self, run_id: str, error: Exception) -> None:
        """Note why a run has stopped."""
        if run_id in self._runs:
            self._runs[run_id].error = error

    async def flush(self) -> None:
        """Store what has changed of the list of runs."""
        async with self._lock:
            for run_id, run in list(self._runs.items()):
                if run.is_stored or self._checkpoint.is_lost:
                    continue
                if not run.is_looked_up and await self._registry.has(run_id):
                    former = await self._registry.find(run_id)
                    kept = {"created_at": former.created_at, "log_dir": run.record.log_dir or former.log_dir}
                    run.record = run.record.model_copy(update=kept)
                run.is_looked_up, record = True, run.record
                await self._registry.save(record)
                # It may have changed meanwhile.
                run.is_stored = run.record is record

    async def end(self, error: BaseException | None, *, drains: bool = True) -> None:
        """Let no call begin, finish those under way, and leave the list as it is then."""
        told = _tell_end(error)
        self.stop.request(told, error if isinstance(error, Exception) else None)
        try:
            if drains:
                for _, context in self._lent.values():
                    await context.drain()
        finally:
            stopped = [run for run in self._runs.values() if run.record.status != "done"]
            events = [self._settle(run, told) for run in stopped]
            try:
                await self.flush()
                for run, event in zip(stopped, events, strict=True):
                    self._tell(run, event)
            except (sqlite3.Error, OSError, CheckpointError) as storage_error:
                # The place may be what has ended the block: that is what to tell.
                logger.warning("The run list could not be brought up to date: %s", storage_error)

    def _hear(self, settings: Settings, kind: RunKind, event: Event) -> None:
        """Take note of an event, and write it to its run's files."""
        if self._checkpoint.is_lost:
            return
        run = self._runs.get(event.run_id) or self._begin(event.run_id, settings, kind)
        if isinstance(event, _ENDS):
            self._change(run, "done")
        elif isinstance(event, ReviewRequested):
            ids = ", ".join(event.candidate_ids)
            self._change(run, "waiting", f"Level {event.level} waits for a decision about {ids}.")
        elif isinstance(event, _BEGINS):
            self._change(run, "running")
        run.last_seq, run.elapsed_s = event.seq, max(run.elapsed_s, event.elapsed_s)
        for sink in run.sinks:
            sink(event)

    def _begin(self, run_id: str, settings: Settings, kind: RunKind) -> _Listed:
        folder = self._folder_of(run_id)
        vault = None if self._options.has_plain_files else self._checkpoint.vault
        files = open_run_files(folder, settings, run_id=run_id, log_level=self._options.log_level, vault=vault)
        record = make_record(run_id, settings, replace(self._options, log_dir=folder), kind=kind)
        record = record.model_copy(update={"embedded_in": self._thread_id})
        self._runs[run_id] = _Listed(record, sinks=self._files.enter_context(files))
        return self._runs[run_id]

    def _folder_of(self, run_id: str) -> Path | None:
        return self._folder / run_id if self._options.writes_files else None

    def _number(self, run_id: str) -> Numbering:
        """Return what numbers a run's events after those in its log."""
        folder = self._folder_of(run_id)
        # A database's events are found by the name of the thread that holds it.
        is_logged = folder is not None and self._checkpoint.last_seq is None
        return Numbering(find_last_number(folder, run_id), is_logged=True) if folder and is_logged else Numbering()

    def _settle(self, run: _Listed, told: str) -> RunStopped:
        """Note how a run that has not ended is left, and return what is told of it."""
        status: Literal["interrupted", "waiting", "failed"] = "interrupted"
        message, is_resumable = told, True
        if run.error is not None:
            status = reason_of(run.error) if isinstance(run.error, DRPOError) else "failed"
            message = _describe(run.error)
            is_resumable = not isinstance(run.error, DRPOError) or run.error.is_resumable
        elif run.record.status == "waiting":
            status, message = "waiting", run.record.message
        self._change(run, status, message)
        return RunStopped(
            run_id=run.record.thread_id,
            reason=status,
            message=message,
            is_resumable=is_resumable,
            seq=run.last_seq + 1,
            elapsed_s=run.elapsed_s,
            time=time.time(),
        )

    def _tell(self, run: _Listed, event: Event) -> None:
        if not self._checkpoint.is_lost:
            for sink in (*run.sinks, *self._sinks):
                sink(event)

    def _change(self, run: _Listed, status: RunStatus, message: str = "") -> None:
        if (run.record.status, run.record.message) != (status, message):
            run.record = run.record.model_copy(update={"status": status, "message": message})
            run.is_stored = False
        if status == "running":
            run.error = None


def _tell_end(error: BaseException | None) -> str:
    if error is None:
        return "The graph that it runs in was left."
    if isinstance(error, asyncio.CancelledError):
        return "The graph that it runs in was cancelled; finished calls are stored."
    return f"The graph that it runs in has ended: {_describe(error)}"


def _describe(error: BaseException) -> str:
    # What is not ours may quote a request.
    return str(error) if isinstance(error, DRPOError) else redact(f"{type(error).__name__}: {error}")
