"""``drpo runs``, ``drpo show`` and ``drpo events``: look at runs, also while they are being worked on."""

import asyncio
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer
from pydantic import ValidationError

from drpo_graph.checkpoint import DEFAULT_CHECKPOINT, is_worked_on, require_checkpoint
from drpo_graph.cli import options as flags
from drpo_graph.display import Display, inert, make_display
from drpo_graph.display.streams import quiet
from drpo_graph.errors import CheckpointError
from drpo_graph.events import RunFinished, parse_event
from drpo_graph.vault import Vault, read_vault

if TYPE_CHECKING:
    from drpo_graph.registry import RunRecord

_POLL_S = 0.2
_MAX_MESSAGE = 300


def runs_command(checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT, as_json: flags.JsonOption = False) -> None:
    """List the runs of a checkpoint, the newest first."""
    if checkpoint == DEFAULT_CHECKPOINT and not checkpoint.exists():
        _print("[]" if as_json else f"No runs in {checkpoint}. `drpo optimize` starts one.")
        return
    require_checkpoint(checkpoint)
    from drpo_graph.cli.reading import list_runs  # Loads LangGraph.

    runs = asyncio.run(list_runs(checkpoint))
    if as_json:
        _print(json.dumps([run.model_dump(mode="json", exclude={"settings"}) for run in runs], indent=2))
    elif runs:
        _print_runs(runs)
    else:
        _print(f"No runs in {checkpoint}. `drpo optimize` starts one.")


def show_command(
    thread_id: flags.RunArgument,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    as_json: flags.JsonOption = False,
) -> None:
    """Show one run: its result, or how far it is; its levels, the path to its best prompt, its cost."""
    require_checkpoint(checkpoint)
    from drpo_graph.cli.reading import load_run  # Loads LangGraph.
    from drpo_graph.cli.run_page import print_run

    run = asyncio.run(load_run(checkpoint, thread_id))
    if as_json:
        content = {
            "run": run.record.model_dump(mode="json"),
            "result": run.result.model_dump(mode="json") if run.result else None,
            "beams": run.beams,
            "tree": [candidate.model_dump(mode="json") for candidate in run.tree],
        }
        _print(json.dumps(content, indent=2))
        return
    where = "" if checkpoint == DEFAULT_CHECKPOINT else f" --checkpoint {shlex.quote(str(checkpoint))}"
    print_run(run, quiet(sys.stdout), place=where)


def events_command(
    thread_id: flags.RunArgument,
    follow: flags.FollowOption = False,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    display: flags.DisplayOption = "jsonl",
) -> None:
    """Print a run's stored events, or follow them from another terminal; --display rich shows the live panel."""
    require_checkpoint(checkpoint)
    from drpo_graph.cli.reading import find_run  # Loads LangGraph.
    from drpo_graph.export import EVENTS_FILE, SEALED_EVENTS_FILE

    record = asyncio.run(find_run(checkpoint, thread_id))
    if record.log_dir is None:
        raise CheckpointError(f"Run {thread_id!r} keeps no event log: it was started with --disable-log.")
    path = Path(record.log_dir) / EVENTS_FILE
    vault = None
    if not path.exists() and (sealed := path.with_name(SEALED_EVENTS_FILE)).exists():
        path, vault = sealed, read_vault(os.environ)
    try:
        file = path.open(encoding="utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise CheckpointError(f"Event log {path}: {error.strerror}.") from error
    with file:
        shown = make_display(display, stdout=sys.stdout, stderr=sys.stderr)
        shown.start()
        try:
            _show_events(file, shown, vault)
            if follow:
                _follow_events(file, shown, checkpoint, thread_id, vault)
        finally:
            shown.stop()


def _show_events(file: TextIO, shown: Display, vault: Vault | None) -> bool:
    """Show the complete lines that are not read yet; return whether the last of them ends the run."""
    from drpo_graph.export import open_event_line

    has_result = False
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            # Half a line: its other half is still to come.
            file.seek(place)
            return has_result
        if line.isspace():
            continue
        try:
            event = parse_event(open_event_line(line, vault))
        except (ValidationError, CheckpointError) as error:
            # A killed process may have left half a line; the events around it still count.
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            said = inert(why, max_chars=_MAX_MESSAGE)
            typer.echo(f"note: skipped a line that is no event: {said}", err=True)
            continue
        shown.handle(event)
        has_result = isinstance(event, RunFinished)


def _follow_events(file: TextIO, shown: Display, checkpoint: Path, thread_id: str, vault: Vault | None) -> None:
    """Show further events until the run has its result, or until no process works on it any more."""
    has_result = False
    while not has_result:
        is_active = is_worked_on(checkpoint, thread_id)
        # What a process wrote before it went is read after it was seen to be gone.
        has_result = _show_events(file, shown, vault)
        if not is_active:
            return
        time.sleep(_POLL_S)


def _print_runs(runs: "list[RunRecord]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("thread", "status", "started"):
        table.add_column(heading, no_wrap=True)
    table.add_column("base model", overflow="fold", max_width=40)
    table.add_column("message", overflow="fold", ratio=1)
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        cells = (run.thread_id, run.status, started, run.settings.base.model, run.message)
        table.add_row(*(Text(inert(cell, max_chars=_MAX_MESSAGE)) for cell in cells))
    Console(file=quiet(sys.stdout), highlight=False).print(table)


def _print(text: str) -> None:
    """Print text; a reader that has left (``| head``) is no error."""
    stream = quiet(sys.stdout)
    stream.write(f"{text}\n")
    stream.flush()
