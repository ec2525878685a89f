"""``drpo prune`` and ``drpo export``: give space back, and write a run's files from what is stored."""

import asyncio
import datetime
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from pydantic import ValidationError

from drpo_graph.cli import options as flags
from drpo_graph.cli.commands.prompts import LicenceOption, keep_and_tell, say
from drpo_graph.cli.completion import complete_thread
from drpo_graph.cli.option_groups import FLAG, OptionGroup, argument, option, takes_options
from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.errors import CheckpointError, DamagedError, DRPOError, RunLockedError, StateFormatError, UsageError
from drpo_graph.events.log import EVENTS_FILE
from drpo_graph.prompts.placeholders import find_style
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.terminal import inert
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Storage

if TYPE_CHECKING:
    from drpo_graph.storage.retention import Choice, Keep
    from drpo_graph.storage.run_list import RunRecord

_MAX_NAMES = 2000
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


class _Pruning(OptionGroup):
    """What is taken."""

    older_than: str | None = option(None, "AGE", help="Only runs untouched for so long, e.g. 12h, 30d, 4w.")
    keep: Literal["records", "result", "nothing"] = option(
        "records", "WHAT", help="What stays: records, result or nothing."
    )
    unfinished: bool = option(False, FLAG, help="With --keep nothing: also runs that could still be resumed.")
    dry_run: bool = option(False, FLAG, help="Say what would go; change nothing.")
    yes: bool = option(False, FLAG, help="Do not ask.", flag="--yes -y")


class _Entry(OptionGroup):
    """Where a run's prompt is to be kept, and what its user says of it."""

    registry: Path | None = option(
        None, "DIR", help="Keep the run's prompt, with its provenance, in this folder of prompts."
    )
    model: str | None = option(None, "NAME", help="Its model's name there; the run's base model by default.")
    licence: LicenceOption = None


@takes_options
def prune_command(
    *,
    thread_ids: list[str] | None = argument(
        None, "THREAD...", help="Runs; all finished ones if absent.", completes=complete_thread
    ),
    what: _Pruning,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
) -> None:
    """Give space back: old checkpoints of finished runs, all but their results, or whole runs.

    --keep records leaves all that a search found and drops the checkpoints on the way. --keep result leaves what `drpo
    runs` and `drpo show` need and the result; --keep nothing leaves nothing in the checkpoint. Run folders stay. A run
    that is being worked on is never touched, one that is not finished only by --keep nothing, and only if it is named
    or --unfinished is given.
    """
    storage = find_storage(checkpoint)
    storage.require()
    if what.keep != "records" and not thread_ids and what.older_than is None:
        raise UsageError(f"--keep {what.keep}: name the runs, or give --older-than, e.g. 30d.")
    if what.unfinished and what.keep != "nothing":
        raise UsageError("--unfinished: of a run that is not finished, only --keep nothing can take something.")
    from drpo_graph.storage.retention import Choice  # Loads LangGraph.

    names = frozenset(check_thread_id(one) for one in thread_ids or ())
    age = None if what.older_than is None else _read_age(what.older_than)
    choice = Choice(what.keep, names, age, what.unfinished)
    asyncio.run(_prune(storage, choice, dry_run=what.dry_run, yes=what.yes))


@takes_options
def export_command(
    *,
    thread_id: str | None = argument(None, "THREAD", help="The run's name; or give --all.", completes=complete_thread),
    output: Path | None = option(None, "DIR", help="Where the files go, a folder for each run.", flag="--output -o"),
    all_runs: bool = option(False, FLAG, help="Every run of the checkpoint.", flag="--all"),
    entry: _Entry,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
) -> None:
    """Write a run's files from the checkpoint alone: prompt, result, tree; of an unfinished run, the best so far.

    With --registry a finished run's prompt is kept by its model's name, for drpo prompts and drpo generate.
    """
    if entry.registry is None and (entry.model is not None or entry.licence is not None):
        raise UsageError("drpo export: --model and --licence are for the folder of prompts. Name it with --registry.")
    if output is None and entry.registry is None:
        raise UsageError("drpo export: say where to: --output DIR for the run's files, --registry DIR for its prompt.")
    if entry.registry is not None and all_runs:
        raise UsageError("drpo export --registry: a model has one prompt there. Name one run instead of --all.")
    storage = find_storage(checkpoint)
    storage.require()
    if (thread_id is None) != all_runs:
        raise UsageError("drpo export: name one run, or give --all.")
    if output is not None:
        asyncio.run(_export(storage, thread_id, output))
    if entry.registry is not None and thread_id is not None:
        asyncio.run(_register(storage, thread_id, entry=entry, kept=PromptRegistry(entry.registry)))


async def _prune(storage: Storage, choice: "Choice", *, dry_run: bool, yes: bool) -> None:
    chosen = await _choose(storage, choice)
    if choice.keep != "records" and not dry_run and not yes and chosen:
        _confirm(chosen, choice.keep)
    before = await storage.measure()
    num_pruned = sum([await _prune_one(storage, run, choice, dry_run=dry_run) for run in chosen])
    if dry_run:
        say(f"{_count_runs(num_pruned)} would be pruned; nothing was changed")
        return
    if num_pruned:
        await _reclaim(storage, num_pruned)
    after = await storage.measure()
    say(f"{_count_runs(num_pruned)} pruned; {storage.name}: {before} bytes before, {after} after")


async def _choose(storage: Storage, choice: "Choice") -> "list[RunRecord]":
    """Return the runs that are to be pruned, as far as can be seen without holding them; say which named ones are not.

    Raises:
        RunNotFoundError: one that is named does not exist.
    """
    from drpo_graph.storage.run_list import RunRegistry  # Loads LangGraph.

    chosen = []
    async with storage.open_for_reading() as reader:
        registry = RunRegistry(reader.store)
        for run in [await registry.find(one) for one in sorted(choice.names)] or await registry.list_runs():
            why = await choice.find_obstacle(run, reader.store)
            if why is None:
                chosen.append(run)
            elif choice.names or (choice.keep == "nothing" and run.status != "done"):
                say(f"{run.thread_id}: {why}; left as it is")
    return chosen


async def _prune_one(storage: Storage, run: "RunRecord", choice: "Choice", *, dry_run: bool) -> bool:
    """Prune one run and say so; return whether that was possible."""
    from drpo_graph.storage.retention import prune_run
    from drpo_graph.storage.run_list import RunRegistry

    try:
        async with storage.open_run(check_thread_id(run.held_as), must_exist=True) as checkpoint:
            registry = RunRegistry(checkpoint.store)
            if not await registry.has(run.thread_id):
                return False
            record = await registry.find(run.thread_id)
            why = await choice.find_obstacle(record, checkpoint.store, checkpoint.saver)
            if record.updated_at != run.updated_at:
                # What was agreed to was another state of it.
                why = "was worked on meanwhile"
            if why is None:
                taken = await prune_run(checkpoint, record, keep=choice.keep, is_dry=dry_run)
    except RunLockedError:
        why = "is being worked on"
    except UsageError as error:
        say(f"{error} It is left as it is.")
        return False
    if why is not None:
        say(f"{run.thread_id}: {why}; left as it is")
        return False
    say(f"{taken.thread_id}: {taken.num_checkpoints} checkpoints and {taken.num_records} records")
    return True


def _count_runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


async def _reclaim(storage: Storage, num_pruned: int) -> None:
    """Give space back, unless a run is being worked on, which would have to wait for it."""
    from drpo_graph.storage.run_list import RunRegistry

    try:
        async with storage.open_for_reading() as reader:
            for run in await RunRegistry(reader.store).list_runs():
                if await reader.is_worked_on(run.held_as):
                    say(f"{run.thread_id}: is being worked on; the space is given back by a prune after its end")
                    return
        await storage.reclaim()
    except (CheckpointError, StateFormatError) as error:
        raise CheckpointError(f"{_count_runs(num_pruned)} pruned; space could not be given back: {error}") from error


def _confirm(chosen: "list[RunRecord]", keep: "Keep") -> None:
    """Raise ``Abort`` unless the user agrees, ``UsageError`` where nobody is there to be asked."""
    if not sys.stdin.isatty():
        raise UsageError(f"drpo prune --keep {keep} cannot be undone: give --yes, or see with --dry-run what it takes.")
    names = inert(", ".join(run.thread_id for run in chosen), max_chars=_MAX_NAMES)
    num_unfinished = sum(run.status != "done" for run in chosen)
    if keep == "nothing":
        noted = f" ({num_unfinished} unfinished, could be resumed)" if num_unfinished else ""
        question = f"Delete {len(chosen)} runs entirely{noted}: {names}?"
    else:
        question = f"Take all but the result from {len(chosen)} runs: {names}?"
    typer.confirm(f"{question} It cannot be undone", abort=True, err=True)


def _read_age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise UsageError(f"--older-than {text}: expected a number of hours, days or weeks, e.g. 12h, 30d or 4w.")
    return int(match[1]) * _SECONDS[match[2]]


async def _export(storage: Storage, thread_id: str | None, output: Path) -> None:
    from drpo_graph.runs.reading import list_names  # Loads LangGraph.

    if thread_id is not None:
        await _export_one(storage, thread_id, output)
        return
    names = await list_names(storage)
    num_failed = 0
    for name in names:
        try:
            await _export_one(storage, name, output)
        except (DRPOError, ValidationError) as error:
            # One that is broken, or of another version, is no reason to leave the others where they are.
            num_failed += 1
            say(f"{name}: not exported: {error}")
    if num_failed:
        raise CheckpointError(f"{num_failed} of {len(names)} runs could not be exported.")


async def _export_one(storage: Storage, name: str, output: Path) -> None:
    """Write one run's files, and say so."""
    from drpo_graph.icl.files import write_stored_examples
    from drpo_graph.runs.files import write_stored_run
    from drpo_graph.runs.reading import load_run

    folder = output / check_thread_id(name)
    try:
        run = await load_run(storage, name)
        damage = run.damage
    except DamagedError as error:
        damage = str(error)
    if damage:
        await _export_damaged(storage, name, folder, damage=damage)
        return
    if run.record.kind == "icl":
        files = write_stored_examples(folder, run.record, run.icl_result)
    elif run.record.kind == "oirl":
        from drpo_graph.oirl.collection.files import write_stored_collection

        files = await write_stored_collection(storage, folder, run.record, run.collection)
    else:
        files = write_stored_run(folder, run.record, result=run.result, tree=run.tree, beams=run.beams)
    say(f"{name}: {len(files)} files in {folder}, {_export_events(storage, run.record, folder)}")


async def _export_damaged(storage: Storage, name: str, folder: Path, *, damage: str) -> None:
    """Write what can be read of a damaged run, and say so."""
    from drpo_graph.runs.files import write_salvaged
    from drpo_graph.runs.reading import salvage_run

    run = await salvage_run(storage, name)
    files = write_salvaged(folder, run)
    events = "no events" if run.record is None else _export_events(storage, run.record, folder)
    say(f"{name}: {len(files)} files in {folder}, {events}")
    num_lost = sum(one.thread_id is not None for one in run.lost)
    what = f"damaged: {num_lost} of its records could not be read, and others may be missing. {damage}"
    typer.echo(f"note: {inert(what, max_chars=_MAX_NAMES)}", err=True)


def _export_events(storage: Storage, record: "RunRecord", folder: Path) -> str:
    """Write a run's events, opened if they are sealed; return what became of them."""
    if record.log_dir is not None and Path(record.log_dir).resolve() == folder.resolve():
        # They may be written at this moment: what replaces them would lack some.
        return "its events as they were"
    opened: list[bytes] = []
    try:
        with storage.open_events(record.thread_id, record.log_dir, held_as=record.held_as) as events:
            lines = [line for line in events.read() if not line.text.isspace()]
            if not lines:
                return "no events"
            for line in lines:
                with suppress(CheckpointError):
                    opened.append(f"{events.open_line(line.text).rstrip()}\n".encode("utf-8", "replace"))
        write_atomically(folder / EVENTS_FILE, opened)
    except OSError as error:
        raise CheckpointError(f"Folder {folder}: {error.strerror or error}. Give another one with --output.") from error
    except CheckpointError as error:
        return f"no events ({error})"
    num_closed = len(lines) - len(opened)
    return f"{len(opened)} events" + (f", {num_closed} did not open" if num_closed else "")


async def _register(storage: Storage, thread_id: str, *, entry: _Entry, kept: PromptRegistry) -> None:
    """Keep a finished run's prompt, and say so."""
    from drpo_graph.runs.reading import load_finished  # Loads LangGraph.

    record, result = await load_finished(storage, thread_id, advice="Name a run of drpo optimize.")
    settings = record.settings
    model = entry.model or settings.base.model
    if not model:
        raise UsageError(f"Run {thread_id!r} names no base model. Give the prompt's with --model.")
    prompt = RegisteredPrompt.from_result(
        result,
        model=model,
        source=storage.name,
        date=datetime.datetime.fromtimestamp(record.updated_at, datetime.UTC).date(),
        licence=entry.licence,
        placeholders=find_style(settings.initial_prompt, settings.placeholders),
    )
    keep_and_tell(kept, prompt)
