"""``drpo prune`` and ``drpo export``: give space back, and write a run's files from what is stored."""

import asyncio
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from drpo_graph.checkpoint import check_thread_id, find_storage
from drpo_graph.cli import options as flags
from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.display.streams import quiet
from drpo_graph.errors import RunLockedError, UsageError
from drpo_graph.storage import Storage

if TYPE_CHECKING:
    from drpo_graph.registry import RunRecord
    from drpo_graph.retention import Keep

_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


def prune_command(
    thread_ids: flags.RunsArgument = None,
    older_than: flags.OlderThanOption = None,
    keep: flags.KeepOption = "records",
    dry_run: flags.DryPruneOption = False,
    yes: flags.YesOption = False,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
) -> None:
    """Give space back: old checkpoints of finished runs, all but their results, or whole runs.

    --keep records leaves all that a search found and drops the checkpoints on the way. --keep result leaves what `drpo
    runs` and `drpo show` need and the result; --keep nothing leaves nothing in the checkpoint. Run folders stay. A run
    that is being worked on is never touched, one that is not finished only by --keep nothing.
    """
    storage = find_storage(checkpoint)
    storage.require()
    if keep != "records" and not thread_ids and older_than is None:
        raise UsageError(f"--keep {keep}: name the runs, or give --older-than, e.g. 30d.")
    age_s = None if older_than is None else _read_age(older_than)
    for one in thread_ids or ():
        check_thread_id(one)
    asyncio.run(_prune(storage, thread_ids or [], age_s, keep=keep, dry_run=dry_run, yes=yes))


def export_command(
    output: flags.OutputOption,
    thread_id: flags.SomeRunArgument = None,
    all_runs: flags.AllRunsOption = False,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
) -> None:
    """Write a run's files from the checkpoint alone: prompt, result, tree; of an unfinished run, the best so far."""
    storage = find_storage(checkpoint)
    storage.require()
    if (thread_id is None) != all_runs:
        raise UsageError("drpo export: name one run, or give --all.")
    asyncio.run(_export(storage, thread_id, output))


async def _prune(
    storage: Storage, thread_ids: list[str], age_s: float | None, *, keep: "Keep", dry_run: bool, yes: bool
) -> None:
    from drpo_graph.registry import RunRegistry  # Loads LangGraph.

    async with storage.open_for_reading() as reader:
        registry = RunRegistry(reader.store)
        found = [await registry.find(one) for one in thread_ids] or await registry.list_runs()
        is_old = [age_s is None or time.time() - run.updated_at > age_s for run in found]
        chosen = [
            run for run, old in zip(found, is_old, strict=True) if old and (run.status == "done" or keep == "nothing")
        ]
        for run in found:
            if run.thread_id in thread_ids and run not in chosen:
                why = "is not finished" if run.status != "done" else "is not old enough"
                _say(f"{run.thread_id}: {why}; left as it is")
    if keep != "records" and not dry_run and not yes and chosen:
        _confirm(chosen, keep)
    before = await storage.measure()
    num_pruned = sum([await _prune_one(storage, run, keep=keep, dry_run=dry_run) for run in chosen])
    if dry_run:
        _say(f"{num_pruned} runs would be pruned; nothing was changed")
        return
    await storage.reclaim()
    after = await storage.measure()
    _say(f"{num_pruned} runs pruned; {storage.name}: {before} bytes before, {after} after")


async def _prune_one(storage: Storage, run: "RunRecord", *, keep: "Keep", dry_run: bool) -> int:
    """Prune one run and say so; return how many that were."""
    from drpo_graph.registry import RunRegistry
    from drpo_graph.retention import prune_run

    try:
        async with storage.open_run(check_thread_id(run.thread_id), must_exist=True) as checkpoint:
            # It may have been resumed, or pruned, since it was listed.
            registry = RunRegistry(checkpoint.store)
            if not await registry.has(run.thread_id):
                return 0
            record = await registry.find(run.thread_id)
            if record.status != "done" and keep != "nothing":
                return 0
            taken = await prune_run(checkpoint, record, keep=keep, is_dry=dry_run)
    except RunLockedError:
        _say(f"{run.thread_id}: is being worked on; left as it is")
        return 0
    except UsageError as error:
        _say(f"{error} It is left as it is.")
        return 0
    _say(f"{taken.thread_id}: {taken.num_checkpoints} checkpoints and {taken.num_records} records")
    return 1


def _confirm(chosen: "list[RunRecord]", keep: "Keep") -> None:
    """Do nothing where the user agrees.

    Raises:
        UsageError: nobody is there to be asked.
        Abort: the user does not.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"drpo prune --keep {keep} cannot be undone: give --yes, or see with --dry-run what it takes.")
    typer.confirm(f"Take all but {keep} from {len(chosen)} runs? It cannot be undone", abort=True, err=True)


def _read_age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise UsageError(f"--older-than {text}: expected a number of hours, days or weeks, e.g. 12h, 30d or 4w.")
    return int(match[1]) * _SECONDS[match[2]]


async def _export(storage: Storage, thread_id: str | None, output: Path) -> None:
    from drpo_graph.cli.reading import list_runs, load_run  # Loads LangGraph.
    from drpo_graph.export import EVENTS_FILE, write_stored_run
    from drpo_graph.private_files import make_private_folder

    names = [thread_id] if thread_id is not None else [run.thread_id for run in await list_runs(storage)]
    for name in names:
        run = await load_run(storage, name)
        folder = make_private_folder(output / check_thread_id(name))
        files = write_stored_run(folder, run.record, result=run.result, tree=run.tree, beams=run.beams)
        log = Path(run.record.log_dir) / EVENTS_FILE if run.record.log_dir is not None else None
        if log is not None and log.is_file() and log.resolve() != (folder / EVENTS_FILE).resolve():
            # Events are no part of the checkpoint: where they are still there, they come along.
            shutil.copyfile(log, folder / EVENTS_FILE, follow_symlinks=False)
            (folder / EVENTS_FILE).chmod(0o600)
            files.append(folder / EVENTS_FILE)
        _say(f"{name}: {len(files)} files in {folder}")


def _say(text: str) -> None:
    from drpo_graph.display import inert

    stream = quiet(sys.stdout)
    stream.write(f"{inert(text, max_chars=2000)}\n")
    stream.flush()
