"""``drpo runs``, ``drpo show`` and ``drpo events``: look at runs, also while they are being worked on."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_graph.archive import Archive
from drpo_graph.checkpoint import DEFAULT_CHECKPOINT, open_checkpoint
from drpo_graph.cli import options as flags
from drpo_graph.display import DisplayKind, inert, inert_block, make_display, render_summary
from drpo_graph.errors import CheckpointError
from drpo_graph.events import RunFinished, parse_event
from drpo_graph.export import EVENTS_FILE, creation_order, load_tree
from drpo_graph.records import Candidate, RunResult
from drpo_graph.registry import RunRecord, RunRegistry

_POLL_S = 0.2
_MAX_PROMPT_CHARS = 100
_MAX_SHOWN = 10_000


def runs_command(checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT, as_json: flags.JsonOption = False) -> None:
    """List the runs of a checkpoint, the newest first."""
    runs = asyncio.run(_list_runs(checkpoint))
    if as_json:
        typer.echo(json.dumps([run.model_dump(mode="json", exclude={"settings"}) for run in runs], indent=2))
        return
    if not runs:
        typer.echo(f"No runs in {checkpoint}. `drpo optimize` starts one.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("thread", "status", "started", "base model", "message"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        cells = (run.thread_id, run.status, started, run.settings.base.model, run.message)
        table.add_row(*(Text(inert(cell, max_chars=_MAX_PROMPT_CHARS)) for cell in cells))
    Console().print(table)


def show_command(
    thread_id: flags.RunArgument,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    as_json: flags.JsonOption = False,
) -> None:
    """Show one run: its result, or how far it is; its levels, the path to its best prompt, its cost."""
    record, result, tree, beams = asyncio.run(_load_run(checkpoint, thread_id))
    if as_json:
        content = {
            "run": record.model_dump(mode="json"),
            "result": result.model_dump(mode="json") if result else None,
            "beams": beams,
            "tree": [candidate.model_dump(mode="json") for candidate in tree],
        }
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    by_id = {candidate.id: candidate for candidate in tree}
    console.print(_levels_table(beams, by_id))
    best_id = result.candidate_id if result else next(iter(beams[-1]), None) if beams else None
    if best_id is not None:
        console.print(_trace_table(best_id, by_id))
    if result is not None:
        console.print(render_summary(result, elapsed_s=None), crop=False)
        return
    status = f"{record.status}: {record.message}" if record.message else record.status
    console.print(Text(f"\n{inert(status, max_chars=400)}"), crop=False, soft_wrap=True)
    if best_id is not None:
        console.print(Text("best prompt so far:", style="bold"))
        typer.echo(inert_block(by_id[best_id].prompt, max_chars=_MAX_SHOWN))
    console.print(Text(f"continue: drpo resume {thread_id}"), soft_wrap=True)


def events_command(
    thread_id: flags.RunArgument,
    follow: flags.FollowOption = False,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    display: flags.DisplayOption = "jsonl",
) -> None:
    """Print a run's stored events, or follow them from another terminal; --display rich shows the live panel."""
    path = asyncio.run(_find_events(checkpoint, thread_id))
    kind: DisplayKind = display
    shown = make_display(kind, stdout=sys.stdout, stderr=sys.stderr)
    shown.start()
    try:
        for line in _read_lines(path, follow=follow):
            try:
                event = parse_event(line)
            except ValidationError as error:
                # A killed process may have left half a line; the events around it still count.
                typer.echo(f"note: skipped a line that is no event: {error.errors()[0]['msg']}", err=True)
                continue
            shown.handle(event)
            if follow and isinstance(event, RunFinished):
                return
    finally:
        shown.stop()


async def _list_runs(checkpoint: Path) -> list[RunRecord]:
    async with open_checkpoint(checkpoint, must_exist=True) as opened:
        return await RunRegistry(opened.store).list_runs()


async def _load_run(
    checkpoint: Path, thread_id: str
) -> tuple[RunRecord, RunResult | None, tuple[Candidate, ...], list[list[str]]]:
    async with open_checkpoint(checkpoint, must_exist=True) as opened:
        record = await RunRegistry(opened.store).find(thread_id)
        archive = Archive(opened.store, thread_id)
        stored = await archive.get("run", "result")
        levels = sorted((await archive.get_all("levels")).items())
        beams = [[str(one) for one in beam] for _, level in levels if isinstance(beam := level["beam"], list)]
        result = RunResult.model_validate(stored) if stored else None
        return record, result, await load_tree(archive), beams


async def _find_events(checkpoint: Path, thread_id: str) -> Path:
    async with open_checkpoint(checkpoint, must_exist=True) as opened:
        record = await RunRegistry(opened.store).find(thread_id)
    if record.log_dir is None:
        raise CheckpointError(f"Run {thread_id!r} keeps no event log: it was started with --disable-log.")
    return Path(record.log_dir) / EVENTS_FILE


def _read_lines(path: Path, *, follow: bool) -> Iterator[str]:
    """Yield the complete lines of a growing file."""
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"Event log {path}: {error.strerror}.") from error
    with file:
        rest = ""
        while True:
            rest += file.readline()
            if rest.endswith("\n"):
                yield rest
                rest = ""
            elif not follow:
                return
            else:
                time.sleep(_POLL_S)


def _levels_table(beams: list[list[str]], by_id: dict[str, Candidate]) -> Table:
    table = Table(title="levels", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("level", "beam", "reward", "path reward"):
        table.add_column(heading)
    for level, beam in enumerate(beams):
        for place, candidate_id in enumerate(beam):
            candidate = by_id[candidate_id]
            cells = (
                "" if place else str(level),
                candidate_id,
                _number(candidate.reward),
                _number(candidate.path_reward),
            )
            table.add_row(*cells)
    return table


def _trace_table(candidate_id: str, by_id: dict[str, Candidate]) -> Table:
    table = Table(
        title="\npath to the best prompt", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for heading in ("candidate", "from", "reward", "prompt"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    trace: list[Candidate] = []
    at: str | None = candidate_id
    while at is not None:
        trace.insert(0, by_id[at])
        at = by_id[at].parent_id
    for one in sorted(trace, key=lambda candidate: creation_order(candidate.id)):
        prompt = inert(one.prompt, max_chars=_MAX_PROMPT_CHARS)
        table.add_row(one.id, one.origin, _number(one.reward), Text(prompt))
    return table


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.2f}"
