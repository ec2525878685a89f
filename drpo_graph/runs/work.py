"""One process's part of a run, whatever its graph: records, files, errors and the end of it."""

import logging
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.graph.state import CompiledStateGraph

from drpo_graph.calls.failed_samples import ask_again
from drpo_graph.errors import (
    BudgetSpentError,
    CheckpointError,
    DamagedError,
    DRPOError,
    PartError,
    ReadOnlyError,
    ReviewNeededError,
    RunInterruptedError,
    StateFormatError,
    UnexpectedEndError,
    UsageError,
)
from drpo_graph.events.emitter import Emitter, EventSink, Numbering
from drpo_graph.events.log import find_last_number
from drpo_graph.events.schema import Event, RunStopped
from drpo_graph.models.outages import never_ends
from drpo_graph.parts.loading import is_async
from drpo_graph.parts.own_code import tell_error
from drpo_graph.records import Record
from drpo_graph.runs.logs import open_run_files
from drpo_graph.runs.signals import handle_signals
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.terminal import inert
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.reviews import ReviewRequest
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.search.state import STATE_FORMAT
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.damage import tell_damage, valid
from drpo_graph.storage.places import DEFAULT_CHECKPOINT, find_storage
from drpo_graph.storage.protocols import Checkpoint, Storage
from drpo_graph.storage.retention import prune_run
from drpo_graph.storage.run_list import RunRecord, RunRegistry, is_free

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

_MAX_TOLD = 500
"""Characters of an error that nobody expected, which are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is carried out, as opposed to what it does: nothing here changes its result."""

    checkpoint: Path | str | Storage = field(default=DEFAULT_CHECKPOINT, repr=False)
    """A SQLite file, or the URI of a PostgreSQL database; not shown, as a URI may hold a password."""
    log_dir: Path | None = None
    """The run folder; named by the thread id, beside the file or under ``drpo_runs``, when absent."""
    writes_files: bool = True
    sinks: tuple[EventSink, ...] = ()
    """Called with every event."""
    handles_signals: bool = False
    """Whether the first Ctrl-C (or SIGTERM) drains running calls and stops, and the second stops at once."""
    has_plain_files: bool = False
    """Whether a run whose checkpoint is encrypted writes its files all the same."""
    has_ended: Callable[[str], bool] = never_ends
    """Whether the server at an endpoint (its base URL) is known to be gone for good: nobody waits for that one."""
    log_level: str = "INFO"
    """Of ``log.txt``."""


def run_folder(options: RunOptions, thread_id: str) -> Path | None:
    """Return the folder of a run's files, or ``None`` when it writes none."""
    if not options.writes_files:
        return None
    return options.log_dir or find_storage(options.checkpoint).folder / thread_id


def reason_of(error: DRPOError) -> Literal["interrupted", "waiting", "failed"]:
    """Return in what state an error leaves a run."""
    if isinstance(error, ReviewNeededError):
        return "waiting"
    return "interrupted" if isinstance(error, RunInterruptedError) else "failed"


def _need_review(request: ReviewRequest) -> ReviewNeededError:
    ids = tuple(one.id for one in request.candidates)
    return ReviewNeededError(
        f"Level {request.level} waits for a decision about {', '.join(ids)}.", level=request.level, candidate_ids=ids
    )


class RunWork(ABC, Generic[R]):
    """One process's part of a run, whatever its graph: what it does to records, files and errors around it."""

    _result_type: type[R]
    _finished: Callable[..., Event]
    """Makes the event that tells a result."""

    def __init__(
        self,
        record: RunRecord,
        context: RunContext,
        checkpoint: Checkpoint,
        options: RunOptions,
        given: Record,
        *,
        retries_failed: bool = False,
    ) -> None:
        self._record = record
        self._context = context
        self._checkpoint = checkpoint
        self._options = options
        self._given = given
        self._retries_failed = retries_failed
        self._was_done = record.status == "done"
        self._numbering = Numbering()
        self._graph = self._make_graph()
        self._archive = Archive(checkpoint.store, record.thread_id)
        self._registry = RunRegistry(checkpoint.store)
        self._config: Any = {"configurable": {"thread_id": record.thread_id}, "recursion_limit": RECURSION_LIMIT}

    async def carry_out(self) -> R:
        """Run to the end, export, and keep the run list true whatever happens."""
        if self._checkpoint.read_only is not None:
            # Nothing can be written: a finished run has its result all the same.
            self._context = replace(self._context, store=self._checkpoint.store, sinks=self._options.sinks)
            with outside_of_graphs():
                return await self._work()
        folder = run_folder(self._options, self._record.thread_id)
        # The user's code may go to another working folder meanwhile.
        folder = folder and folder.absolute()
        vault, level = None if self._options.has_plain_files else self._checkpoint.vault, self._options.log_level
        files = open_run_files(
            folder, self._record.settings, run_id=self._record.thread_id, log_level=level, vault=vault
        )
        callers = [at_home(sink) for sink in self._options.sinks]
        with outside_of_graphs(), files as file_sinks:
            self._numbering = self._go_on_numbering(folder)
            # The context was made before the folder was opened: a run that cannot start leaves no folder behind.
            sinks = self._checkpoint.guard(self._context.stop, (*file_sinks, *callers))
            self._context = replace(
                self._context,
                store=self._checkpoint.store,
                sinks=sinks,
                has_ended=self._options.has_ended,
                is_streamed=False,
                numbering=self._numbering,
            )
            result = await self._work_in_list(folder if vault is None else None)
            await self._registry.save(self._record.model_copy(update={"status": "done"}))
            if folder is not None and vault is None:
                await self._export(folder, result)
            return result

    def _go_on_numbering(self, folder: Path | None) -> Numbering:
        """Return what numbers the events after those in the run's log."""
        last = self._checkpoint.last_seq
        if folder is not None:
            last = max(last or 0, find_last_number(folder, self._record.thread_id))
        return Numbering(last or 0, is_logged=last is not None)

    def _tell_event(self, event: Event) -> None:
        sinks, numbering = self._context.sinks, self._numbering
        Emitter(self._record.thread_id, sinks, numbering=numbering, is_streamed=False).emit(event)

    async def _work_in_list(self, folder: Path | None) -> R:
        """Work on the run while the list tells so, and leave there how that ended."""
        former: RunRecord | None = None
        is_listed = True
        try:
            # Only now is it a run: what is wrong with settings, models or folders came up before.
            is_listed = await self._registry.has(self._record.thread_id)
            former = self._record if is_listed else None
            await self._store_given()
            started = self._record.model_copy(update={"status": "running", "message": "", "resume_flags": ""})
            self._record = await self._registry.save(started)
            is_listed = True
            with handle_signals(self._context, enabled=self._options.handles_signals):
                return await self._work()
        except (sqlite3.Error, OSError) as error:
            explained = self._checkpoint.explain(error)
            await (self._note_stop(explained) if is_listed else self._restore(None))
            raise explained from error
        except (UsageError, DamagedError) as error:
            # Refused before anything was done: the run is what it was.
            is_paid = former is None and not await is_free(self._checkpoint.store, self._record.thread_id)
            await (self._note_stop(error) if is_paid else self._restore(former))
            raise
        except DRPOError as error:
            if isinstance(error, BudgetSpentError):
                await self._tell_standing(error, folder)
            await (self._note_stop(error) if is_listed else self._restore(None))
            raise
        except Exception as error:
            # Whosever mistake it is: the list must not say later that the process was killed.
            unexpected = UnexpectedEndError(redact(inert(tell_error(error), max_chars=_MAX_TOLD)))
            await (self._note_stop(unexpected) if is_listed else self._restore(None))
            raise

    async def _restore(self, former: RunRecord | None) -> None:
        """Leave the list as it was before; a run that was not on it leaves nothing, and its name to others."""
        if self._checkpoint.is_lost:
            return
        try:
            if former is None:
                await prune_run(self._checkpoint, self._record, keep="nothing")
            else:
                await self._registry.save(former)
        except (sqlite3.Error, OSError, CheckpointError) as storage_error:
            logger.warning("The run list could not be brought up to date: %s", storage_error)

    async def _work(self) -> R:
        with valid(self._record.thread_id, "its checkpoint"):
            snapshot = await self._graph.aget_state(self._config)
        # Not `next`: it is empty, too, between the last task of a level and the checkpoint after it.
        is_finished = "result" in snapshot.values and not snapshot.tasks
        if self._was_done and not is_finished:
            thread_id = self._record.thread_id
            raise tell_damage(
                f"Run {thread_id!r}", thread_id=thread_id, cause="it is done, and its result is not there"
            )
        if "fingerprints" in snapshot.values:
            self._check_state(snapshot.values)
        if is_finished:
            # No session: what a finished run was told needs none, and to open one may write.
            with valid(self._record.thread_id, "what it found"):
                result = self._result_type.model_validate(snapshot.values["result"])
            self._numbering.begin(len(await self._archive.keys("budget")))
            self._tell_event(self._finished(run_id=self._record.thread_id, result=result))
            return result
        if self._checkpoint.read_only is not None:
            raise ReadOnlyError(
                f"Run {self._record.thread_id!r} is not finished, and its checkpoint cannot be written. Copy that to a "
                "place that can be, and resume it there with --checkpoint."
            ) from self._checkpoint.read_only
        if "fingerprints" in snapshot.values:
            if self._retries_failed and any(task.interrupts for task in snapshot.tasks):
                raise UsageError(
                    f"Run {self._record.thread_id!r} waits for a decision: its level is scored, and nothing of it is "
                    "asked for again. Decide with `drpo review`, and leave out --retry-failed."
                )
            if self._retries_failed:
                # Only now: a resume that is refused has changed nothing. Not later: the session reads it as it opens.
                await ask_again(self._archive)
            self._context.told.add(self._record.thread_id)
            await self._announce_resume(await self._context.session(self._record.thread_id), snapshot.values)
        # Input where nothing is saved yet, else none: the graph goes on from its checkpoint.
        graph_input = self._make_input() if snapshot.created_at is None else None
        try:
            output = await self._graph.ainvoke(graph_input, self._config, context=self._context, durability="async")
        except Exception as error:
            # Calls that wait to be tried again must not hold up the end. A node that failed has cancelled its
            # siblings; the calls they had begun are paid for, and are kept. Not so when the run itself is cancelled:
            # the second Ctrl-C stops at once.
            self._context.stop.request("The run has failed.", error)
            for session in self._context.open_sessions():
                await session.ledger.drain()
            raise
        if pending := output.get("__interrupt__"):
            raise _need_review(ReviewRequest.model_validate(pending[0].value))
        return self._result_type.model_validate(output["result"])

    def _check_state(self, values: Mapping[str, Any]) -> None:
        if values.get("format") != STATE_FORMAT:
            raise StateFormatError(
                f"Run {self._record.thread_id!r} has state format {values.get('format')!r}, this version reads "
                f"{STATE_FORMAT}. Resume it with the version that started it."
            )
        self._context.check_fingerprints(values["fingerprints"])

    async def _tell_standing(self, error: BudgetSpentError, folder: Path | None) -> None:
        try:
            values = (await self._graph.aget_state(self._config)).values
            await self._tell(error, values, folder=folder)
        except (sqlite3.Error, OSError, DRPOError) as problem:
            # The budget is why the run stops, and what is told with it only an addition.
            logger.warning("What the run has found so far could not be read or written: %s", problem)

    async def _note_stop(self, error: DRPOError) -> None:
        if self._checkpoint.is_lost:
            return
        is_kept = isinstance(error, CheckpointError) and not isinstance(error, DamagedError)
        is_resumable = error.is_resumable or is_kept
        reason = reason_of(error)
        record = self._record.model_copy(
            update={"status": reason, "message": str(error), "resume_flags": error.resume_flags}
        )
        try:
            event = RunStopped(
                run_id=record.thread_id,
                reason=reason,
                message=str(error),
                is_resumable=is_resumable,
                resume_flags=error.resume_flags,
            )
            self._tell_event(event)
            await self._registry.save(record)
        except (sqlite3.Error, OSError, CheckpointError) as storage_error:
            # The disk may be what stopped the run: the first error is the one to report.
            logger.warning("The run list could not be brought up to date: %s", storage_error)

    async def _store_given(self) -> None:
        """Keep what the run is given, so that resuming needs nothing else."""
        await self._archive.put("run", "input", self._given.model_dump(mode="json"))

    @abstractmethod
    def _make_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]: ...

    @abstractmethod
    def _make_input(self) -> Any: ...

    @abstractmethod
    async def _announce_resume(self, session: RunSession, values: Mapping[str, Any]) -> None: ...

    @abstractmethod
    async def _export(self, folder: Path, result: R) -> None: ...

    async def _tell(self, error: BudgetSpentError, values: Mapping[str, Any], *, folder: Path | None) -> None:
        """Add to a spent budget's error what the run has found so far, where the graph can say."""


def at_home(sink: EventSink) -> EventSink:
    """Return the sink as its caller would call it: a stream writer in it needs the context that it is from.

    What it raises comes as a :class:`PartError`, but for errors of ours.
    """
    home, named = copy_context(), getattr(sink, "__qualname__", type(sink).__qualname__)
    if is_async(sink):
        raise UsageError(f"The event sink {named} is asynchronous, and would never run: expected a plain function.")

    def take(event: Event) -> None:
        try:
            # A copy each time: a context cannot be entered twice at once.
            home.copy().run(sink, event)
        except DRPOError:
            raise
        except Exception as error:
            raise PartError(
                f"The event sink {named} failed at {event.type!r}: {tell_error(error)}. Mend it, then resume the run."
            ) from error

    return take


@contextmanager
def outside_of_graphs() -> Iterator[None]:
    """Let graphs that are invoked in the block, by this task, be configured by their caller alone."""
    token = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
