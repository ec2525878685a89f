"""``drpo runs``, ``drpo show`` and ``drpo events``: look at runs, also while they are being worked on."""

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, get_args

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.option_groups import FLAG, option, takes_options
from drpo_graph.cli.places import DEFAULT_PLACE, is_default, name_place
from drpo_graph.display import make_display
from drpo_graph.display.streams import quiet, write_lines
from drpo_graph.errors import DamagedError, UsageError
from drpo_graph.records import RunStatus
from drpo_graph.safety.terminal import inert
from drpo_graph.storage.places import find_storage

if TYPE_CHECKING:
    from drpo_graph.storage.run_list import RunRecord

_POLL_S = 0.2
_MAX_MESSAGE = 300
_WHOLE_WIDTH = 5000


@takes_options
def runs_command(
    *,
    limit: int | None = option(None, "N", help="Only the newest.", at_least=1),
    status: list[str] | None = option(
        None, "STATUS", help="running, done, interrupted, waiting or failed; may be given several times."
    ),
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    as_json: flags.JsonOption = False,
) -> None:
    """List the runs of a checkpoint, the newest first."""
    if unknown := [one for one in status or () if one not in get_args(RunStatus)]:
        raise UsageError(f"--status {unknown[0]}: expected one of {', '.join(get_args(RunStatus))}.")
    storage = find_storage(checkpoint)
    runs: list[RunRecord] = []
    if storage.exists() or not is_default(storage):
        storage.require()
        from drpo_graph.runs.reading import list_runs  # Loads LangGraph.

        lost: list[DamagedError] = []
        found = asyncio.run(list_runs(storage, lost=lost))
        for one in lost:
            _note(str(one))
        runs = [run for run in found if not status or run.status in status][:limit]
    if as_json:
        listed = [run.model_dump(mode="json", exclude={"settings"}) for run in runs]
        write_lines(sys.stdout, json.dumps(listed, indent=2))
    elif runs:
        _print_runs(runs)
    else:
        kind = f"{' or '.join(status)} runs" if status else "runs"
        write_lines(sys.stdout, f"No {kind} in {storage.name}. `drpo optimize` starts one.")


def show_command(
    thread_id: flags.RunArgument,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    as_json: flags.JsonOption = False,
) -> None:
    """Show one run: its result, or how far it is; its levels, the path to its best prompt, its cost."""
    storage = find_storage(checkpoint)
    storage.require()
    from drpo_graph.cli.pages.run import print_run
    from drpo_graph.runs.reading import load_run  # Loads LangGraph.

    run = asyncio.run(load_run(storage, thread_id))
    if run.damage:
        _note(f"{storage.name} is damaged ({run.damage}): its records may be missing. `drpo export` looks further.")
    if as_json:
        content = {
            "run": run.record.model_dump(mode="json"),
            "result": run.result.model_dump(mode="json") if run.result else None,
            "icl_result": run.icl_result.model_dump(mode="json") if run.icl_result else None,
            "collection": run.collection.model_dump(mode="json") if run.collection else None,
            "beams": run.beams,
            "reviews": {level: one.model_dump(mode="json") for level, one in run.decisions.items()},
            "tree": [candidate.model_dump(mode="json") for candidate in run.tree],
        }
        write_lines(sys.stdout, json.dumps(content, indent=2))
        return
    print_run(run, quiet(sys.stdout), place=name_place(storage))


@takes_options
def events_command(
    *,
    thread_id: flags.RunArgument,
    follow: bool = option(False, FLAG, help="Wait for further events until the run ends.", flag="--follow -f"),
    since: int | None = option(None, "N", help="Only the events after the one of this number (`seq`).", at_least=0),
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    display: flags.DisplayOption = "jsonl",
) -> None:
    """Print a run's stored events, or follow them from another terminal; --display rich shows the live panel."""
    storage = find_storage(checkpoint)
    storage.require()
    from drpo_graph.runs.reading import find_run  # Loads LangGraph.
    from drpo_graph.storage.event_cursor import EventCursor

    record = asyncio.run(find_run(storage, thread_id))
    with storage.open_events(thread_id, record.log_dir, held_as=record.held_as) as events:
        cursor = EventCursor(events, since or 0, skipped=lambda why: _note(f"skipped a line that is no event: {why}"))
        shown = make_display(display, stdout=sys.stdout, stderr=sys.stderr)
        shown.start()
        try:
            for number, part in enumerate(cursor.follow(is_live=follow)):
                if number:
                    time.sleep(_POLL_S)
                for event in part:
                    shown.handle(event)
        finally:
            shown.stop()


def _note(what: str) -> None:
    typer.echo(f"note: {inert(what, max_chars=2 * _MAX_MESSAGE)}", err=True)


def _print_runs(runs: "list[RunRecord]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from drpo_graph.runs.reading import describe_origin  # Loads LangGraph.

    # What reads a pipe wants whole words; a terminal, one line for each run.
    console = Console(file=quiet(sys.stdout), highlight=False)
    console = console if console.is_terminal else Console(file=console.file, highlight=False, width=_WHOLE_WIDTH)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    has_forks = any(run.forked_from is not None for run in runs)
    has_embedded = any(run.embedded_in is not None for run in runs)
    further = (*(("fork of",) if has_forks else ()), *(("runs in",) if has_embedded else ()))
    for heading in ("thread", "status", "started", *further):
        table.add_column(heading, no_wrap=True)
    # Rich narrows columns that may wrap first: these give way, and their texts do not wrap either.
    for heading in ("base model", "message"):
        table.add_column(heading)
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        origin = (*((describe_origin(run),) if has_forks else ()), *((run.embedded_in or "",) if has_embedded else ()))
        cells = (run.thread_id, run.status, started, *origin, run.settings.base.model, run.message)
        shown = (inert(cell, max_chars=_MAX_MESSAGE) for cell in cells)
        table.add_row(*(Text(one, no_wrap=True, overflow="ellipsis") for one in shown))
    with console.capture() as captured:
        console.print(table)
    write_lines(sys.stdout, *(line.rstrip() for line in captured.get().splitlines()))
