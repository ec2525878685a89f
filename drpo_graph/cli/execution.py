"""Carry a run out for the command line: display, signals, one-line errors that say how to go on."""

import asyncio
import gc
import os
import shlex
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import typer

from drpo_graph.cli.inputs import check_budget
from drpo_graph.cli.options import Output, Serving
from drpo_graph.cli.pages.review import decide_at_terminal, find_pending, is_terminal
from drpo_graph.cli.places import DEFAULT_PROMPTS, name_place
from drpo_graph.cli.serve_request import SERVE_FOLDER
from drpo_graph.cli.served_roles import RoleServing, serve_roles
from drpo_graph.display import DisplayKind, make_display
from drpo_graph.display.summary import RESUME_COMMAND
from drpo_graph.errors import (
    DRPOError,
    FingerprintMismatchError,
    NoRunsError,
    ReviewNeededError,
    RunExistsError,
    UsageError,
)
from drpo_graph.events.log import EVENTS_FILE, SEALED_EVENTS_FILE
from drpo_graph.events.schema import Event, RunFinished, RunStopped
from drpo_graph.icl import resume_icl
from drpo_graph.parts.loop_watch import LOOP_WATCH
from drpo_graph.records import ROLES, CollectionResult, ICLResult, Query, Role, RunResult
from drpo_graph.runs.files import ALGORITHM_FOLDER, PROMPT_FILE, RESULT_FILE
from drpo_graph.runs.logs import LOG_FILE
from drpo_graph.runs.reading import find_run, is_name_free
from drpo_graph.runs.runner import resume
from drpo_graph.runs.work import RunOptions, reason_of, run_folder
from drpo_graph.safety.encryption import read_vault
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.terminal import inert_block
from drpo_graph.search.assembly import Parts
from drpo_graph.settings.layers import build_settings, describe_changes, merge_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.run_list import DEED_BY_KIND, RunKind

EXIT_INTERRUPTED = 130
_MAX_MESSAGE = 10_000


def calm_collector() -> None:
    """Let the garbage collector pass over what the imports left, and look less often: a seventh of a call's CPU.

    For a process that is ours alone; the library leaves its host's collector as it is.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class Begin(Protocol):
    """Carries a run out: all is settled but how."""

    def __call__(self, *, options: RunOptions) -> Coroutine[None, None, RunResult | ICLResult | CollectionResult]:
        """Return the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRun:
    """What a resumed run is given."""

    changes: Mapping[str, object]
    training: tuple[Query, ...] | None = None
    accepts_changes: bool = False
    priced: tuple[str, ...] = ()
    """Models that the command line gives a price."""
    retries_failed: bool = False
    """Whether samples that failed are asked for again."""
    checker: str | None = None
    """What judges, where a run that collects demonstrations needs it named again."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a run of the command line is carried out, shown, and its model served."""

    options: RunOptions
    display: DisplayKind
    serving: RoleServing | None
    checker: str | None = None
    """The user's own that judges, where one does: what resumes the run has to name it again."""
    kind: RunKind = "search"

    @property
    def storage(self) -> Storage:
        """What keeps the run."""
        return find_storage(self.options.checkpoint)


def build_frame(storage: Storage, output: Output, *, serving: Serving | None = None, kind: RunKind = "search") -> Frame:
    """Return how a run is carried out, as the options say.

    Raises:
        UsageError: there are options for a server that is not wanted.
    """
    options = RunOptions(
        checkpoint=storage,
        log_dir=output.log_dir,
        writes_files=not output.disable_log,
        handles_signals=True,
        log_level=output.logging_level or "INFO",
        has_plain_files=output.plain_files,
    )
    served = None
    if serving is not None and serving.serve:
        progress = None if output.display == "none" else sys.stderr
        served = RoleServing(serving.serve_options or "", storage.folder / SERVE_FOLDER, progress)
    elif serving is not None and serving.serve_options is not None:
        raise UsageError("--serve-options is for the server that --serve starts: give both.")
    return Frame(options, output.display, served, kind=kind)


def start(thread_id: str, begin: Begin, *, settings: Settings, frame: Frame, parts: Parts | None = None) -> None:
    """Start a run and show it; ``parts`` are those that it begins with, and goes on with after a decision."""
    if frame.serving is not None:
        # The run would find out itself, but only after the server's start.
        check_is_new(frame.storage, thread_id)
    # What goes on with it after a decision: its reward functions are named again.
    changes = {"reward": settings.reward} if settings.reward else None
    again = partial(resume, thread_id, changes=changes, parts=parts)
    _carry_out(thread_id, begin, settings=settings, frame=frame, again=again)


def make_parts(settings: Settings) -> Parts:
    """Return the parts that a search of the command line has by its settings.

    Raises:
        UsageError: the embeddings that a screen works with cannot be used, or the extra ``oirl`` is not installed.
    """
    if not settings.is_screened:
        return Parts()
    from drpo_graph.oirl.screening import open_screen  # Needs an extra.

    return Parts(screen=open_screen(settings))


def check_is_new(storage: Storage, thread_id: str) -> None:
    """Do nothing when a new run can have this name.

    Raises:
        RunExistsError: there is one.
    """
    try:
        has_room = not storage.exists() or asyncio.run(is_name_free(storage, thread_id))
    except NoRunsError:
        # A new database: its tables come with its first run.
        return
    if not has_room:
        raise RunExistsError(f"Run {thread_id!r} exists already. `drpo resume {thread_id}` continues it.")


def go_on(run: ResumedRun, thread_id: str, *, frame: Frame) -> None:
    """Resume a run and show it; a finished one shows its result again."""
    record = asyncio.run(find_run(frame.storage, thread_id))
    record.check_own()
    if frame.options.log_dir is None and record.log_dir is not None:
        frame = replace(frame, options=replace(frame.options, log_dir=Path(record.log_dir)))
    frame = replace(frame, kind=record.kind)
    settings = build_settings(merge_settings(record.settings.model_dump(), run.changes))
    changed = describe_changes(record.settings, settings)
    if changed and not run.accepts_changes:
        raise FingerprintMismatchError(
            f"This run was started with other settings: {', '.join(changed)}. Resume it without the change, start a "
            "new run, or accept the change with --force.",
            ("settings",),
        )
    begin: Begin
    if run.checker is not None and record.kind != "oirl":
        raise UsageError(f"Run {thread_id!r} {DEED_BY_KIND[record.kind]}: it takes no --checker.")
    if record.kind == "oirl":
        if run.training is not None:
            raise UsageError(f"Run {thread_id!r} collects demonstrations: it takes no DATA, and has its queries.")
        from drpo_graph.oirl.collection import resume_collection  # Needs an extra.

        frame = replace(frame, checker=run.checker)
        begin = partial(
            resume_collection,
            thread_id,
            checker=run.checker,
            changes=run.changes,
            accepts_changes=run.accepts_changes,
            retries_failed=run.retries_failed,
        )
    elif record.kind == "icl":
        if run.training is not None:
            raise UsageError(f"Run {thread_id!r} optimises ICL examples: it takes no DATA, and has its examples.")
        begin = partial(
            resume_icl,
            thread_id,
            changes=run.changes,
            accepts_changes=run.accepts_changes,
            retries_failed=run.retries_failed,
        )
    else:
        begin = partial(
            resume,
            thread_id,
            changes=run.changes,
            parts=make_parts(settings),
            queries=run.training,
            accepts_changes=run.accepts_changes,
            retries_failed=run.retries_failed,
        )
    if record.status == "done":
        # A finished run only shows what it found: nothing is asked.
        frame = replace(frame, serving=None)
    check_budget(settings, run.priced)
    _carry_out(thread_id, begin, settings=settings, frame=frame, again=begin)


class _Screen:
    """A display that begins with the first event: what goes wrong before it needs no panel."""

    def __init__(self, thread_id: str, frame: Frame, settings: Settings) -> None:
        files = _list_files(frame.options, thread_id)
        commands = [_tell_resuming(thread_id, frame, settings), *_list_next(thread_id, frame)]
        self._display = make_display(
            frame.display, stdout=sys.stdout, stderr=sys.stderr, files=files, commands=commands
        )
        self._shows_stops = frame.display in ("rich", "plain")
        self._is_started = False
        self.has_result = False
        self.shown_stop: str | None = None
        self.resume_command = commands[0]

    def handle(self, event: Event) -> None:
        """Show an event."""
        if not self._is_started:
            self._display.start()
            self._is_started = True
        self._display.handle(event)
        self.has_result = self.has_result or isinstance(event, RunFinished)
        if self._shows_stops and isinstance(event, RunStopped):
            self.shown_stop = event.message

    def close(self) -> None:
        """Give the terminal back."""
        if self._is_started:
            self._display.stop()


def _carry_out(thread_id: str, begin: Begin, *, settings: Settings, frame: Frame, again: Begin) -> None:
    """Run with a display; where the run waits for a decision and somebody is at the terminal, ask, and do ``again``."""
    with serve_roles(settings, frame.serving, optional=_find_optional(settings, frame.kind)) as has_ended:
        frame = replace(frame, options=replace(frame.options, has_ended=has_ended))
        while True:
            try:
                return _show(thread_id, begin, settings=settings, frame=frame)
            except ReviewNeededError:
                if frame.display not in ("rich", "plain") or not is_terminal():
                    raise
                if not decide_at_terminal(find_pending(thread_id, frame.storage), frame.storage):
                    raise
                begin = again


def _find_optional(settings: Settings, kind: RunKind) -> list[Role]:
    """Return the roles that need no model: what asks none of a role, or has code of the user's for it, names none."""
    unset = [role for role in ROLES if not settings.role(role).model]
    return unset if kind != "search" or settings.reward else []


def _show(thread_id: str, begin: Begin, *, settings: Settings, frame: Frame) -> None:
    """Run with a display; an error that it has not shown says how to go on."""
    screen = _Screen(thread_id, frame, settings)
    LOOP_WATCH.listeners.append(_warn)
    calm_collector()
    try:
        result = asyncio.run(begin(options=replace(frame.options, sinks=(screen.handle,))))
        if not screen.has_result and isinstance(result, RunResult):
            # It was finished before: what was found is worth saying again.
            screen.handle(RunFinished(run_id=thread_id, result=result))
    except DRPOError as error:
        error.was_shown = screen.shown_stop == str(error)
        if error.is_resumable and not error.was_shown:
            said = inert_block(redact(str(error)), max_chars=_MAX_MESSAGE)
            command = f"{screen.resume_command} {error.resume_flags}".rstrip()
            command = command.replace(RESUME_COMMAND, f"drpo {error.resume_verb} ", 1)
            command = tell_command(command)
            typer.echo(f"{reason_of(error)}: {said} {error.resume_verb.capitalize()} with: {command}", err=True)
            error.was_shown = True
        raise
    except (asyncio.CancelledError, KeyboardInterrupt):
        screen.close()
        command = tell_command(screen.resume_command)
        typer.echo(f"stopped at once; finished calls are stored. Resume with: {command}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        LOOP_WATCH.listeners.remove(_warn)
        screen.close()


def _warn(message: str) -> None:
    typer.echo(f"warning: {inert_block(message, max_chars=_MAX_MESSAGE)}", err=True)


def _list_files(options: RunOptions, thread_id: str) -> list[Path]:
    folder = run_folder(options, thread_id)
    if read_vault(os.environ) is not None and not options.has_plain_files:
        return [folder / SEALED_EVENTS_FILE] if folder is not None else []
    names = (PROMPT_FILE, RESULT_FILE, f"{ALGORITHM_FOLDER}/output.json", EVENTS_FILE, LOG_FILE)
    return [folder / name for name in names] if folder is not None else []


def _tell_resuming(thread_id: str, frame: Frame, settings: Settings) -> str:
    """Return the command that resumes a run: what it was given and does not store, it is given again."""
    named = [("--reward", one) for one in settings.reward or ()]
    if frame.checker is not None:
        named.append(("--checker", frame.checker))
    code = "".join(f" {flag} {shlex.quote(one)}" for flag, one in named)
    serving = frame.serving.flags if frame.serving is not None else ""
    return f"{RESUME_COMMAND}{thread_id}{name_place(frame.storage)}{serving}{code}"


def _list_next(thread_id: str, frame: Frame) -> list[str]:
    """Return what can be done with a run that is done; one's own server has gone with it, and answers nothing."""
    where = name_place(frame.storage)
    looked_at = [f"drpo show {thread_id}{where}", f"drpo events {thread_id}{where}"]
    if frame.kind != "search":
        return looked_at
    asked = [f'drpo generate "Why is the sky blue?" --run {thread_id}{where}'] if frame.serving is None else []
    return [*looked_at, *asked, f"drpo export {thread_id}{where} --registry {DEFAULT_PROMPTS}"]
