"""What of a run is kept, and what is given back: old checkpoints, what only a search in work needs, or the whole run.

Written against LangGraph's saver and store, so that it holds for every database that keeps runs.
"""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from langgraph.store.base import BaseStore

from drpo_graph.errors import DamagedError, UsageError
from drpo_graph.storage.archive import Archive, Kind, StoredLevel, list_items, namespace_of
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.run_list import RunRecord, RunRegistry

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

Keep = Literal["records", "result", "nothing"]
"""``records``: all that the search found, but not how it got there; ``result``: what was delivered, and the path to it;
``nothing``."""

_FOR_A_RESULT: tuple[Kind, ...] = (
    *("run", "candidates", "rollouts", "levels", "learned", "capabilities", "reviews"),
    *("questions", "prompts", "trials"),
)
"""Without what was learnt of the servers, a look at a finished run would ask them."""
_BATCH = 500


class Pruned(NamedTuple):
    """What was taken from one run, or would be."""

    thread_id: str
    num_checkpoints: int
    num_records: int


class Choice(NamedTuple):
    """Which runs are to be pruned."""

    keep: Keep
    names: frozenset[str] = frozenset()
    """Runs that are named; any if there are none."""
    min_age_s: float | None = None
    """How long nothing must have been stored of them."""
    has_unfinished: bool = False
    """Whether also those that are neither finished nor named."""

    async def find_obstacle(
        self, record: RunRecord, store: BaseStore, saver: "BaseCheckpointSaver[str] | None" = None
    ) -> str | None:
        """Return what keeps a run from being pruned, or ``None``; its checkpoints are looked at if they are at hand."""
        if record.status != "done" and record.embedded_in is not None:
            return f"is not finished, and {record.embedded_in!r}, which it runs in, needs it"
        if record.status != "done" and self.keep != "nothing":
            return "is not finished"
        if record.status != "done" and record.thread_id not in self.names and not self.has_unfinished:
            return "is not finished (--unfinished takes it, too)"
        if self.min_age_s is not None and time.time() - await _last_change(record, store, saver) <= self.min_age_s:
            return "is not old enough"
        return None


async def _last_change(record: RunRecord, store: BaseStore, saver: "BaseCheckpointSaver[str] | None") -> float:
    """Return when something was last stored of a run, in seconds since the epoch.

    A run's record is stored when a process begins with it and when it ends; of a process that was killed, only what it
    had stored meanwhile tells how long it worked.
    """
    last = record.updated_at
    if record.status == "done":
        return last
    for kind in get_args(Kind):
        async for item in list_items(store, namespace_of(record.thread_id, kind)):
            last = max(last, _to_seconds(item.updated_at))
    found = None if saver is None else await saver.aget_tuple(_config_of(record))
    return last if found is None else max(last, _to_seconds(datetime.fromisoformat(found.checkpoint["ts"])))


async def prune_run(checkpoint: Checkpoint, record: RunRecord, *, keep: Keep, is_dry: bool = False) -> Pruned:
    """Take from a run what is not to be kept, or only count it, and return how much that is.

    Raises:
        UsageError: the run is not finished, so that it needs all it has: of it, only everything can be taken.
    """
    thread_id = record.thread_id
    archive = Archive(checkpoint.store, thread_id)
    if keep != "nothing" and (record.status != "done" or not await _has_result(archive)):
        raise UsageError(f"Run {thread_id!r} is not finished, and needs all it has to be resumed.")
    try:
        num_checkpoints = sum([1 async for _ in checkpoint.saver.alist(_config_of(record))])
    except DamagedError:
        if keep != "nothing":
            raise
        num_checkpoints = 0
    kept = 0 if keep == "nothing" else min(1, num_checkpoints)
    doomed = await _find_doomed(archive, keep)
    num_records = sum(map(len, doomed.values()))
    if not is_dry:
        # First what a finished run can do without, last what says that it is there: a kill in between leaves a run that
        # can be pruned again.
        if keep == "result":
            await _shorten_levels(archive)
        for kind, keys in doomed.items():
            for start in range(0, len(keys), _BATCH):
                await archive.change({(kind, key): None for key in keys[start : start + _BATCH]})
        if keep == "nothing":
            await checkpoint.saver.adelete_thread(thread_id)
            await RunRegistry(checkpoint.store).forget(thread_id)
        else:
            await checkpoint.saver.aprune([thread_id], strategy="keep_latest")
    return Pruned(thread_id, num_checkpoints - kept, num_records)


async def _has_result(archive: Archive) -> bool:
    """Return whether a run has delivered a prompt, ICL examples, or demonstrations."""
    names = ("result", "icl_result", "collection_result")
    return any([await archive.get("run", name) is not None for name in names])


async def _find_doomed(archive: Archive, keep: Keep) -> dict[Kind, list[str]]:
    """Return the keys of the records that are not to be kept, by kind."""
    if keep == "records":
        return {}
    doomed: dict[Kind, list[str]] = {}
    trace = await _trace_of(archive) if keep == "result" else set()
    for kind in get_args(Kind):
        keys = await archive.keys(kind)
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
    shortened: list[StoredLevel] = [
        {
            **level,
            "children": [child for child in level["children"] if child["id"] in trace],
            "beam": [one for one in level["beam"] if one in trace],
        }
        for level in await archive.levels()
    ]
    await archive.put_levels(*shortened)
    await archive.put("run", "pruned", {"keep": "result"})


def _config_of(record: RunRecord) -> Any:
    return {"configurable": {"thread_id": record.thread_id}}


def _to_seconds(moment: datetime) -> float:
    # SQLite's times are UTC and do not say so.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
