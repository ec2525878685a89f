"""Read runs out of a checkpoint, also while another process works on them. Nothing is written."""

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ValidationError

from drpo_graph.calls.budget import BudgetPart
from drpo_graph.errors import DamagedError, StateFormatError, UsageError
from drpo_graph.records import Candidate, CollectionResult, ICLResult, RunResult
from drpo_graph.search.reviews import ReviewDecision, list_decisions
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.damage import tell_damage, valid
from drpo_graph.storage.protocols import Reader, Storage
from drpo_graph.storage.run_list import DEED_BY_KIND, RunRecord, RunRegistry, is_free
from drpo_graph.storage.tree import load_tree


class StoredRun(NamedTuple):
    """What a checkpoint holds of one run."""

    record: RunRecord
    result: RunResult | None
    """``None`` until it is finished."""
    tree: tuple[Candidate, ...]
    """Every candidate, in creation order."""
    beams: list[list[str]]
    """Candidate ids by level."""
    icl_result: ICLResult | None = None
    """Of a run over ICL examples, when it is finished."""
    decisions: Mapping[int, ReviewDecision] = MappingProxyType({})
    """What people decided about its levels."""
    collection: CollectionResult | None = None
    """Of a run that collects demonstrations, when it is finished."""
    worked_s: float = 0.0
    """Seconds that its processes have worked on it, as far as they have stored it."""
    damage: str = ""
    """What is wrong with the checkpoint as a whole, so that records may be missing."""


class Salvaged(NamedTuple):
    """What can be read of a run in a damaged checkpoint."""

    record: RunRecord | None
    result: RunResult | None
    tree: tuple[Candidate, ...]
    beams: list[list[str]]
    lost: list[DamagedError]
    """What could not be read."""


async def list_runs(storage: Storage, *, lost: list[DamagedError] | None = None) -> list[RunRecord]:
    """Return the runs of a checkpoint, the newest first; given a list, damaged ones are told in it."""
    async with storage.open_for_reading(lost=lost) as reader:
        return [await _as_it_is(run, reader) for run in await RunRegistry(reader.store).list_runs()]


async def list_names(storage: Storage) -> list[str]:
    """Return the names of a checkpoint's runs, those that cannot be read among them."""
    async with storage.open_for_reading() as reader:
        return await RunRegistry(reader.store).list_names()


async def is_name_free(storage: Storage, thread_id: str) -> bool:
    """Return whether a new run can have this name: no other has it, or one that never got to a call and is gone."""
    async with storage.open_for_reading() as reader:
        return await is_free(reader.store, thread_id) and not await reader.is_worked_on(thread_id)


async def find_run(storage: Storage, thread_id: str) -> RunRecord:
    """Return one run of a checkpoint.

    Raises:
        RunNotFoundError: there is none of this name.
    """
    async with storage.open_for_reading() as reader:
        return await _as_it_is(await RunRegistry(reader.store).find(thread_id), reader)


async def load_run(storage: Storage, thread_id: str) -> StoredRun:
    """Return all that a checkpoint holds of one run.

    Raises:
        RunNotFoundError: there is none of this name.
        DamagedError: a record of it is not what was stored.
    """
    async with storage.open_for_reading() as reader:
        record = await _as_it_is(await RunRegistry(reader.store).find(thread_id), reader)
        archive = Archive(reader.store, thread_id)
        with valid(thread_id, "what it found"):
            return await _load(archive, record, reader.find_damage())


async def salvage_run(storage: Storage, thread_id: str) -> Salvaged:
    """Return what can be read of a search in a damaged checkpoint, without what cannot.

    Raises:
        DamagedError: nothing of it can be read.
        UsageError: the run is no search: its result is one record.
    """
    lost: list[DamagedError] = []
    async with storage.open_for_reading(lost=lost) as reader:
        record, result = None, None
        with suppress(UsageError, StateFormatError):
            record = await RunRegistry(reader.store).find(thread_id)
        if record is not None and record.kind != "search":
            raise UsageError(
                f"Run {thread_id!r} {DEED_BY_KIND[record.kind]}: nothing of it can be read but as a whole."
            )
        archive = Archive(reader.store, thread_id)
        stored = await archive.get("run", "result")
        with suppress(ValidationError):
            result = RunResult.model_validate(stored)
        tree = await load_tree(archive, lost=lost)
        beams = [level["beam"] for level in await archive.levels(lost=[])]
    if record is None and not tree:
        raise tell_damage(f"Run {thread_id!r}", thread_id=thread_id, cause="nothing of it can be read")
    return Salvaged(record, result, tree, beams, [one for one in lost if one.thread_id in (None, thread_id)])


async def _load(archive: Archive, record: RunRecord, damage: str) -> StoredRun:
    result = await archive.record("run", "result", RunResult)
    beams = [level["beam"] for level in await archive.levels()]
    icl_result = await archive.record("run", "icl_result", ICLResult)
    collection = await archive.record("run", "collection_result", CollectionResult)
    if record.status == "done" and (result or icl_result or collection) is None:
        raise tell_damage(f"Run {record.thread_id!r}", thread_id=record.thread_id, cause="its result is not there")
    decisions = await list_decisions(archive)
    worked_s = sum(part.elapsed_s for part in (await archive.records("budget", BudgetPart)).values())
    tree = await load_tree(archive)
    return StoredRun(record, result, tree, beams, icl_result, decisions, collection, worked_s, damage)


async def load_finished(storage: Storage, thread_id: str, *, advice: str) -> tuple[RunRecord, RunResult]:
    """Return a search and its result; ``advice`` is for one who names a run of another kind.

    Raises:
        RunNotFoundError: there is none of this name.
        UsageError: it is no search, or not finished.
    """
    run = await load_run(storage, thread_id)
    if run.record.kind != "search":
        raise UsageError(f"Run {thread_id!r} {DEED_BY_KIND[run.record.kind]}: it has no prompt. {advice}")
    if run.result is None:
        raise UsageError(f"Run {thread_id!r} has no result yet: it is {run.record.status}. {run.record.way_on}")
    return run.record, run.result


def describe_origin(record: RunRecord) -> str:
    """Return of what a run is a fork, or an empty text."""
    return "" if record.forked_from is None else f"{record.forked_from} after level {record.forked_level}"


def describe_start(record: RunRecord) -> list[str]:
    """Return what a run began from that another had found, and in what it runs, in a line each."""
    origin = describe_origin(record)
    lines = [f"fork of {origin}"] if origin else []
    lines += [f"runs in {record.embedded_in}, a graph of an app"] if record.embedded_in else []
    return [*lines, f"warm start from {record.warm_start}"] if record.warm_start else lines


async def _as_it_is(record: RunRecord, reader: Reader) -> RunRecord:
    """Return the record with its status as the run's lock shows it: a killed process leaves "running" behind."""
    if record.status == "done":
        return record
    if await reader.is_worked_on(record.held_as):
        return record.model_copy(update={"status": "running", "message": ""})
    if record.status == "running":
        return record.model_copy(update={"status": "interrupted", "message": "Its process has gone."})
    return record
