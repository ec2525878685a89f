"""Read runs out of a checkpoint, also while another process works on them. Nothing is written."""

from pathlib import Path
from typing import NamedTuple

from drpo_graph.archive import Archive
from drpo_graph.checkpoint import is_worked_on, open_store
from drpo_graph.export import load_tree
from drpo_graph.records import Candidate, RunResult
from drpo_graph.registry import RunRecord, RunRegistry


class StoredRun(NamedTuple):
    """What a checkpoint holds of one run."""

    record: RunRecord
    result: RunResult | None
    """``None`` until it is finished."""
    tree: tuple[Candidate, ...]
    """Every candidate, in creation order."""
    beams: list[list[str]]
    """Candidate ids by level."""


async def list_runs(checkpoint: Path) -> list[RunRecord]:
    """Return the runs of a checkpoint, the newest first."""
    async with open_store(checkpoint) as store:
        return [_as_it_is(run, checkpoint) for run in await RunRegistry(store).list_runs()]


async def find_run(checkpoint: Path, thread_id: str) -> RunRecord:
    """Return one run of a checkpoint.

    Raises:
        RunNotFoundError: there is none of this name.
    """
    async with open_store(checkpoint) as store:
        return _as_it_is(await RunRegistry(store).find(thread_id), checkpoint)


async def load_run(checkpoint: Path, thread_id: str) -> StoredRun:
    """Return all that a checkpoint holds of one run.

    Raises:
        RunNotFoundError: there is none of this name.
    """
    async with open_store(checkpoint) as store:
        record = _as_it_is(await RunRegistry(store).find(thread_id), checkpoint)
        archive = Archive(store, thread_id)
        stored = await archive.get("run", "result")
        levels = sorted((await archive.get_all("levels")).items())
        beams = [[str(one) for one in beam] for _, level in levels if isinstance(beam := level["beam"], list)]
        result = RunResult.model_validate(stored) if stored else None
        return StoredRun(record, result, await load_tree(archive), beams)


def _as_it_is(record: RunRecord, checkpoint: Path) -> RunRecord:
    """Return the record with its status as the run's lock shows it: a killed process leaves "running" behind."""
    if record.status == "done":
        return record
    if is_worked_on(checkpoint, record.thread_id):
        return record.model_copy(update={"status": "running", "message": ""})
    if record.status == "running":
        return record.model_copy(update={"status": "interrupted", "message": "Its process has gone."})
    return record
