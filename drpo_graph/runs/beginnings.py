"""How a run begins, and what a stored one goes on with."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from drpo_graph.errors import RunExistsError, UsageError
from drpo_graph.events.log import EVENTS_FILE, SEALED_EVENTS_FILE
from drpo_graph.parts.rewards import check_named_again
from drpo_graph.runs.work import RunOptions, run_folder
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.damage import tell_damage
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.retention import prune_run
from drpo_graph.storage.run_list import DEED_BY_KIND, RunKind, RunRecord, RunRegistry, is_free


async def check_is_new(checkpoint: Checkpoint, thread_id: str, options: RunOptions) -> None:
    """Make the name free for a new run, which must take no other one's place; one that never got to a call leaves it.

    Raises:
        RunExistsError: there is one of this name.
        UsageError: the folder that was named holds another run's files, which would be replaced.
    """
    own_folder = None
    if await RunRegistry(checkpoint.store).has(thread_id):
        record = await RunRegistry(checkpoint.store).find(thread_id)
        if not await is_free(checkpoint.store, thread_id):
            raise RunExistsError(f"Run {thread_id!r} exists already. {record.way_on}")
        own_folder = record.log_dir
        await prune_run(checkpoint, record, keep="nothing")
    if options.writes_files and options.log_dir is not None and str(options.log_dir) != own_folder:
        for name in (EVENTS_FILE, SEALED_EVENTS_FILE):
            log = options.log_dir / name
            if log.exists() and log.stat().st_size > 0:
                raise UsageError(
                    f"The folder {options.log_dir} holds the files of another run ({name}), which would be replaced. "
                    "Give another one with --log-dir, or move them."
                )


def make_record(
    thread_id: str, settings: Settings, options: RunOptions, *, kind: RunKind = "search", warm_start: str | None = None
) -> RunRecord:
    """Return the record of a run that begins now."""
    folder, now = run_folder(options, thread_id), time.time()
    return RunRecord(
        thread_id=thread_id,
        status="running",
        created_at=now,
        updated_at=now,
        settings=settings,
        log_dir=str(folder) if folder else None,
        kind=kind,
        warm_start=warm_start,
    )


class TakenUp(NamedTuple):
    """A run that goes on: with what, and how."""

    settings: Settings
    options: RunOptions
    record: RunRecord
    given: object
    """What it was given when it began."""


async def take_up(
    checkpoint: Checkpoint, thread_id: str, *, kind: RunKind, options: RunOptions, changes: Mapping[str, object] | None
) -> TakenUp:
    """Return what a stored run goes on with; its files go where they went before, unless a folder is named.

    A budget that is raised by the changes stays raised; other changes are for this process.

    Raises:
        RunNotFoundError: there is no such run.
        UsageError: it is of another kind, its reward functions are not named again, or a change cannot be used.
    """
    record = await RunRegistry(checkpoint.store).find(thread_id)
    record.check_own()
    if record.kind != kind:
        if record.kind != "search":
            does = DEED_BY_KIND[record.kind]
            raise UsageError(f"Run {thread_id!r} {does}: `drpo resume {thread_id}` continues it.")
        raise UsageError(f"Run {thread_id!r} is a search: continue it with drpo_graph.resume.")
    check_named_again(record.settings, changes or {})
    settings = record.settings
    if changes:
        settings = build_settings(merge_settings(settings.model_dump(), changes))
    if options.log_dir is None:
        # A run that keeps no files goes on without.
        is_kept = options.writes_files and record.log_dir is not None
        options = replace(options, log_dir=Path(record.log_dir or ""), writes_files=is_kept)
    folder = run_folder(options, thread_id)
    kept = {"log_dir": str(folder) if folder else record.log_dir, "settings": record.settings.with_limits_of(settings)}
    given = await Archive(checkpoint.store, thread_id).get("run", "input")
    if given is None:
        if await is_free(checkpoint.store, thread_id):
            raise UsageError(
                f"Run {thread_id!r} has not begun: what it was given was never stored. Start it again under the same "
                "name, which is free."
            )
        raise tell_damage(f"Run {thread_id!r}", thread_id=thread_id, cause="what it was given is not there")
    return TakenUp(settings, options, record.model_copy(update=kept), given)
