"""Start, resume and read runs: everything around the graph that a command line or a service needs."""

import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from langchain_core.language_models import BaseChatModel
from pydantic import JsonValue

from drpo_graph.archive import Archive
from drpo_graph.chat import never_ends
from drpo_graph.checkpoint import DEFAULT_CHECKPOINT, check_thread_id, find_storage
from drpo_graph.context import RunContext
from drpo_graph.dataset import load_bundled_queries
from drpo_graph.emitter import EventSink
from drpo_graph.errors import (
    BudgetSpentError,
    CheckpointError,
    DatasetError,
    DRPOError,
    FingerprintMismatchError,
    RunExistsError,
    RunInterruptedError,
    StateFormatError,
    UsageError,
)
from drpo_graph.events import RunFinished, RunStopped
from drpo_graph.export import export_result, open_run_files
from drpo_graph.failure_notes import ask_again
from drpo_graph.graph import RECURSION_LIMIT, SearchGraph, build_context, build_graph
from drpo_graph.interrupts import handle_signals
from drpo_graph.protocols import BeamPolicy, MetricSelector, Rewriter
from drpo_graph.records import Query, Role, RunResult
from drpo_graph.registry import RunInput, RunRecord, RunRegistry
from drpo_graph.responders import PromptResponder
from drpo_graph.resuming import announce_resume
from drpo_graph.rewards import CriticPart, check_named_again
from drpo_graph.rewrite_guards import check_fillable
from drpo_graph.settings import Settings, build_settings, merge_settings
from drpo_graph.standing import tell_standing
from drpo_graph.state import STATE_FORMAT, SearchState
from drpo_graph.storage import Checkpoint, Storage

logger = logging.getLogger(__name__)

_MAX_NAME_CHARS = 40


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Replacements for models and components, by role and by protocol."""

    models: Mapping[Role, BaseChatModel] = field(default_factory=dict)
    selector: MetricSelector | None = None
    critic: CriticPart | None = None
    rewriter: Rewriter | None = None
    beam_policy: BeamPolicy | None = None
    responder: PromptResponder | None = None
    """An app in the base model's place."""


async def optimize(
    queries: Sequence[str | Query] | None = None,
    *,
    settings: Settings,
    validation: Sequence[str | Query] = (),
    thread_id: str | None = None,
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> RunResult:
    """Optimise a system prompt and return what was found.

    Args:
        queries: Training queries; the bundled ones when absent.
        settings: What to do.
        validation: Held-out queries; given any, the final choice is made on them.
        thread_id: Names the run; a new name when absent.
        options: Where it is kept and who is told.
        parts: Replacements for models and components.

    Raises:
        UsageError: a setting, path or dataset is wrong, or the run exists already.
        ModelCallError: a model endpoint cannot be used; the run can be resumed.
        RunInterruptedError: it was asked to stop, or its budget is spent (``BudgetSpentError``); it can be resumed.
        CheckpointError: the checkpoint cannot be opened or written.
    """
    options, parts = options or RunOptions(), parts or Parts()
    thread_id = check_thread_id(thread_id or new_thread_id())
    training = load_bundled_queries() if queries is None else queries
    if not training:
        raise DatasetError("The dataset is empty: expected at least one training query.")
    given = RunInput(queries=_as_input(training), validation_queries=_as_input(validation))
    if settings.num_queries is not None and settings.num_queries > len(training):
        raise DatasetError(f"{settings.num_queries} queries were asked for, but the dataset has {len(training)}.")
    filled = [_as_query(one) for one in (*training, *validation)] if parts.responder is None else []
    check_fillable(settings, settings.initial_prompt, filled)
    # Models and templates are checked before anything is created: a typo leaves nothing behind.
    context = _build_context(settings, options, parts, accepts_changes=False)
    async with find_storage(options.checkpoint).open_run(thread_id) as checkpoint:
        registry = RunRegistry(checkpoint.store)
        if await registry.has(thread_id):
            raise RunExistsError(f"Run {thread_id!r} exists already. `drpo resume {thread_id}` continues it.")
        folder, now = run_folder(options, thread_id), time.time()
        record = RunRecord(
            thread_id=thread_id,
            status="running",
            created_at=now,
            updated_at=now,
            settings=settings,
            log_dir=str(folder) if folder else None,
        )
        context = replace(context, store=checkpoint.store)
        return await _Run(record, context, checkpoint, options, given).carry_out()


async def resume(
    thread_id: str,
    *,
    options: RunOptions | None = None,
    parts: Parts | None = None,
    changes: Mapping[str, object] | None = None,
    queries: Sequence[str | Query] | None = None,
    accepts_changes: bool = False,
    retries_failed: bool = False,
) -> RunResult:
    """Continue a run, and return what was found; a finished run returns its result again.

    Args:
        thread_id: The run.
        options: Where it is kept and who is told.
        parts: The same replacements that it was started with.
        changes: Settings to change by name. What only says where and how fast may change; the rest is refused.
        queries: The training queries again, to have them checked; those it was started with when absent.
        accepts_changes: Whether to go on although settings, prompts or data differ from the start.
        retries_failed: Whether to ask again for what had no usable reply: the unscored answers of the level, or the
            validation, in work. What they cost stays counted.

    Raises:
        RunNotFoundError: there is no such run.
        FingerprintMismatchError: settings, prompts or data differ from the start.
        RunLockedError: another process works on it.
    """
    options, parts = options or RunOptions(), parts or Parts()
    thread_id = check_thread_id(thread_id)
    async with find_storage(options.checkpoint).open_run(thread_id, must_exist=True) as checkpoint:
        record = await RunRegistry(checkpoint.store).find(thread_id)
        check_named_again(record.settings, changes or {})
        chosen = record.settings
        if changes:
            chosen = build_settings(merge_settings(chosen.model_dump(), changes))
        stored = await Archive(checkpoint.store, thread_id).get("run", "input")
        given = RunInput.model_validate(stored)
        if queries is not None and not accepts_changes:
            _check_data(given, queries, chosen)
        if options.log_dir is None:
            # Files go where they went before; a run that keeps none goes on without.
            is_kept = options.writes_files and record.log_dir is not None
            options = replace(options, log_dir=Path(record.log_dir or ""), writes_files=is_kept)
        folder = run_folder(options, thread_id)
        # A budget that was raised stays raised; other changes are for this process.
        kept = {"log_dir": str(folder) if folder else record.log_dir}
        record = record.model_copy(update={**kept, "settings": record.settings.with_limits_of(chosen)})
        context = _build_context(chosen, options, parts, accepts_changes=accepts_changes)
        context = replace(context, store=checkpoint.store)
        return await _Run(record, context, checkpoint, options, given, retries_failed=retries_failed).carry_out()


def new_thread_id() -> str:
    """Return a new run name that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run_folder(options: RunOptions, thread_id: str) -> Path | None:
    """Return the folder of a run's files, or ``None`` when it writes none."""
    if not options.writes_files:
        return None
    return options.log_dir or find_storage(options.checkpoint).folder / thread_id


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        record: RunRecord,
        context: RunContext,
        checkpoint: Checkpoint,
        options: RunOptions,
        given: RunInput,
        *,
        retries_failed: bool = False,
    ) -> None:
        self._record = record
        self._context = context
        self._checkpoint = checkpoint
        self._options = options
        self._given = given
        self._retries_failed = retries_failed
        self._graph: SearchGraph = build_graph(record.settings, checkpointer=checkpoint.saver)
        self._config: Any = {
            "configurable": {"thread_id": record.thread_id},
            "recursion_limit": RECURSION_LIMIT,
        }

    async def carry_out(self) -> RunResult:
        """Run to the end, export, and keep the run list true whatever happens."""
        folder = run_folder(self._options, self._record.thread_id)
        vault, level = None if self._options.has_plain_files else self._checkpoint.vault, self._options.log_level
        with open_run_files(folder, self._record.settings, log_level=level, vault=vault) as file_sinks:
            # The context was made before the folder was opened: a run that cannot start leaves no folder behind.
            sinks = self._checkpoint.guard(self._context.stop, (*file_sinks, *self._options.sinks))
            context = replace(self._context, sinks=sinks, is_streamed=False)
            archive = Archive(self._checkpoint.store, self._record.thread_id)
            registry = RunRegistry(self._checkpoint.store)
            try:
                # Only now is it a run: what is wrong with settings, models or folders came up before.
                await archive.put("run", "input", self._given.model_dump(mode="json"))
                former = self._record
                self._record = await registry.save(former.model_copy(update={"status": "running", "message": ""}))
                with handle_signals(context, enabled=self._options.handles_signals):
                    result = await self._search(context)
            except (sqlite3.Error, OSError) as error:
                explained = self._checkpoint.explain(error)
                await self._note_stop(context, explained)
                raise explained from error
            except UsageError:
                # Refused before anything was done: the run is what it was.
                await registry.save(former)
                raise
            except DRPOError as error:
                if isinstance(error, BudgetSpentError):
                    shown = folder if vault is None else None
                    await self._tell_standing(error, context, archive, folder=shown)
                await self._note_stop(context, error)
                raise
            await registry.save(self._record.model_copy(update={"status": "done"}))
            if folder is not None and vault is None:
                await export_result(archive, folder, result)
            return result

    async def _search(self, context: RunContext) -> RunResult:
        snapshot = await self._graph.aget_state(self._config)
        if "fingerprints" in snapshot.values:
            self._check_state(context, snapshot.values)
            # Not `next`: it is empty, too, between the last task of a level and the checkpoint after it.
            if "result" in snapshot.values and not snapshot.tasks:
                return await self._announce_result(context, snapshot.values)
            if self._retries_failed:
                # Only now: a resume that is refused has changed nothing. Not later: the session reads it as it opens.
                await ask_again(Archive(self._checkpoint.store, self._record.thread_id))
            session = await context.session(self._record.thread_id)
            await announce_resume(session, context, cast(SearchState, snapshot.values))
        # Input where nothing is saved yet, else none: the graph goes on from its checkpoint.
        graph_input = self._make_input() if snapshot.created_at is None else None
        try:
            output = await self._graph.ainvoke(
                graph_input,
                self._config,
                context=context,
                durability="async",
            )
        except Exception as error:
            # Calls that wait to be tried again must not hold up the end. A node that failed has cancelled its
            # siblings; the calls they had begun are paid for, and are kept. Not so when the run itself is cancelled:
            # the second Ctrl-C stops at once.
            context.stop.request("The run has failed.", error)
            for session in context.open_sessions():
                await session.ledger.drain()
            raise
        return RunResult.model_validate(output["result"])

    def _make_input(self) -> Any:
        return {
            "initial_prompt": self._record.settings.initial_prompt,
            "queries": self._given.queries,
            "validation_queries": self._given.validation_queries,
        }

    def _check_state(self, context: RunContext, values: Mapping[str, Any]) -> None:
        if values.get("format") != STATE_FORMAT:
            raise StateFormatError(
                f"Run {self._record.thread_id!r} has state format {values.get('format')!r}, this version reads "
                f"{STATE_FORMAT}. Resume it with the version that started it."
            )
        context.check_fingerprints(values["fingerprints"])

    async def _announce_result(self, context: RunContext, values: Mapping[str, Any]) -> RunResult:
        session = await context.session(self._record.thread_id)
        result = RunResult.model_validate(values["result"])
        session.emitter.emit(RunFinished(run_id=session.run_id, result=result))
        return result

    async def _tell_standing(
        self, error: BudgetSpentError, context: RunContext, archive: Archive, *, folder: Path | None
    ) -> None:
        try:
            values = (await self._graph.aget_state(self._config)).values
            await tell_standing(error, values, archive, limits=context.settings, folder=folder)
        except (sqlite3.Error, OSError, DRPOError) as problem:
            # The budget is why the run stops, and what is told with it only an addition.
            logger.warning("What the run has found so far could not be read or written: %s", problem)

    async def _note_stop(self, context: RunContext, error: DRPOError) -> None:
        if self._checkpoint.is_lost:
            return
        is_interrupt = isinstance(error, RunInterruptedError)
        is_resumable = error.is_resumable or isinstance(error, CheckpointError)
        reason: Literal["interrupted", "failed"] = "interrupted" if is_interrupt else "failed"
        record = self._record.model_copy(update={"status": reason, "message": str(error)})
        try:
            event = RunStopped(
                run_id=record.thread_id,
                reason=reason,
                message=str(error),
                is_resumable=is_resumable,
                resume_flags=error.resume_flags,
                time=time.time(),
            )
            for sink in context.sinks:
                sink(event)
            await RunRegistry(self._checkpoint.store).save(record)
        except (sqlite3.Error, OSError, CheckpointError) as storage_error:
            # The disk may be what stopped the run: the first error is the one to report.
            logger.warning("The run list could not be brought up to date: %s", storage_error)


def _build_context(settings: Settings, options: RunOptions, parts: Parts, *, accepts_changes: bool) -> RunContext:
    context = build_context(
        settings,
        models=parts.models,
        sinks=options.sinks,
        accepts_changes=accepts_changes,
        selector=parts.selector,
        critic=parts.critic,
        rewriter=parts.rewriter,
        beam_policy=parts.beam_policy,
        responder=parts.responder,
    )
    return replace(context, has_ended=options.has_ended)


def _as_input(queries: Sequence[str | Query]) -> list[JsonValue]:
    return [query if isinstance(query, str) else query.model_dump(mode="json") for query in queries]


def _as_query(given: str | Query) -> Query:
    return Query(id=given[:_MAX_NAME_CHARS], text=given) if isinstance(given, str) else given


def _check_data(given: RunInput, queries: Sequence[str | Query], settings: Settings) -> None:
    """Do nothing when a resumed run is given the queries it was started with.

    Raises:
        FingerprintMismatchError: they differ.
    """
    if given.queries != _as_input(queries):
        raise FingerprintMismatchError(
            "This run was started with other data. Resume it without queries, start a new run, or accept the change "
            "with --force.",
            ("data",),
        )
