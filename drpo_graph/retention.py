"""What of a run is kept, and what is given back: old checkpoints, what only a search in work needs, or the whole run.

Written against LangGraph's saver and store, so that it holds for every database that keeps runs.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from langgraph.store.base import BaseStore, PutOp
from pydantic import JsonValue

from drpo_graph.archive import Archive, Kind, StoredLevel, namespace_of
from drpo_graph.registry import RunRecord, RunRegistry
from drpo_graph.storage import Checkpoint

Keep = Literal["records", "result", "nothing"]
"""``records``: all that the search found, but not how it got there; ``result``: what was delivered, and the path to it;
``nothing``."""

_FOR_A_RESULT: tuple[Kind, ...] = ("run", "candidates", "rollouts", "levels", "learned", "capabilities")
"""Without what was learnt of the servers, a look at a finished run would ask them."""
_BATCH = 500


class Pruned(NamedTuple):
    """What was taken from one run, or would be."""

    thread_id: str
    num_checkpoints: int
    num_records: int


async def prune_run(checkpoint: Checkpoint, record: RunRecord, *, keep: Keep, is_dry: bool = False) -> Pruned:
    """Take from a run what is not to be kept, and return how much that was.

    A run that is not finished needs all it has: of it, only everything can be taken.

    Args:
        checkpoint: Where it is kept.
        record: The run.
        keep: What of it stays.
        is_dry: Whether only to count.
    """
    thread_id = record.thread_id
    config = {"configurable": {"thread_id": thread_id}}
    num_checkpoints = 0
    async for _ in checkpoint.saver.alist(config):  # type: ignore[arg-type]  # A plain dictionary does.
        num_checkpoints += 1
    kept = 0 if keep == "nothing" else min(1, num_checkpoints)
    archive = Archive(checkpoint.store, thread_id)
    doomed = await _find_doomed(archive, keep)
    num_records = sum(map(len, doomed.values()))
    if not is_dry:
        # First what a finished run can do without, last what says that it is there: a kill in between leaves a run that
        # can be pruned again.
        if keep == "result":
            await _shorten_levels(archive)
        for kind, keys in doomed.items():
            await _delete(checkpoint.store, namespace_of(thread_id, kind), keys)
        if keep == "nothing":
            await checkpoint.saver.adelete_thread(thread_id)
            await RunRegistry(checkpoint.store).forget(thread_id)
        else:
            await checkpoint.saver.aprune([thread_id], strategy="keep_latest")
    return Pruned(thread_id, num_checkpoints - kept, num_records)


async def _find_doomed(archive: Archive, keep: Keep) -> dict[Kind, list[str]]:
    """Return the keys of the records that are not to be kept, by kind."""
    if keep == "records":
        return {}
    doomed: dict[Kind, list[str]] = {}
    trace = await _trace_of(archive) if keep == "result" else set()
    for kind in get_args(Kind):
        keys = list(await archive.get_all(kind))
        if keep == "result" and kind in _FOR_A_RESULT:
            is_of_tree = kind in ("candidates", "rollouts")
            keys = [key for key in keys if is_of_tree and key.partition("/")[0] not in trace]
        doomed[kind] = keys
    return doomed


async def _trace_of(archive: Archive) -> set[str]:
    result = await archive.get("run", "result")
    trace = result["trace"] if result is not None else []
    return {str(one) for one in trace} if isinstance(trace, list) else set()


async def _shorten_levels(archive: Archive) -> None:
    """Leave in each level's record only what is on the way to the result."""
    trace = await _trace_of(archive)
    shortened: dict[str, dict[str, JsonValue]] = {}
    for key, stored in (await archive.get_all("levels")).items():
        level: StoredLevel = {**stored}  # type: ignore[typeddict-item]  # It was stored as one.
        level["children"] = [child for child in level["children"] if child["id"] in trace]
        level["beam"] = [one for one in level["beam"] if one in trace]
        shortened[key] = {**level}  # type: ignore[dict-item]  # JSON-native, as it came.
    await archive.put_all("levels", shortened)
    await archive.put("run", "pruned", {"keep": "result"})


async def _delete(store: BaseStore, namespace: tuple[str, ...], keys: Iterable[str]) -> None:
    left = list(keys)
    for start in range(0, len(left), _BATCH):
        await store.abatch([PutOp(namespace, key, None) for key in left[start : start + _BATCH]])
