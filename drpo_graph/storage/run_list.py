"""The list of runs in a checkpoint: what each was asked to do, how far it is, and where its files are."""

import time
from collections.abc import Mapping
from typing import Literal

from langgraph.store.base import BaseStore, GetOp, Item, PutOp
from pydantic import JsonValue, ValidationError

from drpo_graph.errors import RunNotFoundError, StateFormatError, UsageError
from drpo_graph.records import Record, RunStatus, WarmStart
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Kind, list_items, namespace_of
from drpo_graph.storage.damage import LOST

RunKind = Literal["search", "icl", "oirl"]
DEED_BY_KIND: Mapping[RunKind, str] = {
    "search": "is a search",
    "icl": "optimises ICL examples",
    "oirl": "collects demonstrations",
}
"""What a run does, as messages say it."""
_NAMESPACE = ("drpo", "runs")
_PAID: tuple[Kind, ...] = ("calls", "responses", "rollouts")
"""Kinds of records that cost something."""


class RunInput(Record):
    """What a run was given, kept so that `drpo resume` needs nothing but the thread id."""

    queries: list[JsonValue]
    validation_queries: list[JsonValue]
    warm_start: WarmStart | None = None


class RunRecord(Record):
    """One run of the list."""

    thread_id: str
    status: RunStatus
    created_at: float
    """Seconds since the epoch."""
    updated_at: float
    settings: Settings
    log_dir: str | None
    """The run folder; ``None`` when the run writes no files."""
    message: str = ""
    """Why it stopped, if it did."""
    resume_flags: str = ""
    """What the command that resumes it needs besides, e.g. ``--max-calls 200``."""
    kind: RunKind = "search"
    """What runs: the search, the optimisation of ICL examples, or the collection of demonstrations."""
    forked_from: str | None = None
    """The run that it is a fork of."""
    forked_level: int | None = None
    """After which level of that run it begins."""
    warm_start: str | None = None
    """Where its initial prompt comes from, if it began with one that was found before."""
    embedded_in: str | None = None
    """The thread of the graph that it runs in, if another's; it goes on with that."""

    @property
    def held_as(self) -> str:
        """The name by which a process holds it."""
        return self.embedded_in or self.thread_id

    @property
    def way_on(self) -> str:
        """How it goes on, as a sentence."""
        if self.embedded_in is None:
            return f"`drpo resume {self.thread_id}` continues it."
        return f"It runs in a graph of an app: it goes on when the app invokes its thread {self.embedded_in!r} again."

    def check_own(self) -> None:
        """Do nothing where the run can be resumed, decided about and forked by itself.

        Raises:
            UsageError: it is a part of another graph's.
        """
        if self.embedded_in is not None:
            raise UsageError(f"Run {self.thread_id!r} is not by itself. {self.way_on}")


class RunRegistry:
    """Reads and writes the run list of a store."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store

    async def find(self, thread_id: str) -> RunRecord:
        """Return one run.

        Raises:
            RunNotFoundError: the checkpoint holds no such run.
        """
        stored = await self._get(thread_id)
        if stored is None:
            raise RunNotFoundError(f"There is no run {thread_id!r} in this checkpoint. `drpo runs` lists them.")
        return _read(stored)

    async def has(self, thread_id: str) -> bool:
        """Return whether the checkpoint holds a run."""
        return await self._get(thread_id) is not None

    async def list_names(self) -> list[str]:
        """Return the names of all runs, those that this version cannot read among them."""
        return sorted([item.key async for item in list_items(self._store, _NAMESPACE)])

    async def list_runs(self) -> list[RunRecord]:
        """Return all runs, the newest first."""
        found = [_read(item.value) async for item in list_items(self._store, _NAMESPACE)]
        return sorted(found, key=lambda run: -run.created_at)

    async def save(self, record: RunRecord) -> RunRecord:
        """Store a run's record with the time of now, and return it."""
        stamped = record.model_copy(update={"updated_at": time.time()})
        # Former versions know no such field, and have no such runs.
        unknown = {"embedded_in"} if stamped.embedded_in is None else set()
        value = stamped.model_dump(mode="json", exclude=unknown)
        await self._store.abatch([PutOp(_NAMESPACE, record.thread_id, value, index=False)])
        return stamped

    async def forget(self, thread_id: str) -> None:
        """Take a run off the list."""
        await self._store.abatch([PutOp(_NAMESPACE, thread_id, None)])

    async def _get(self, thread_id: str) -> Mapping[str, object] | None:
        (item,) = await self._store.abatch([GetOp(_NAMESPACE, thread_id, refresh_ttl=False)])
        return item.value if isinstance(item, Item) and item.value is not LOST else None


async def is_free(store: BaseStore, thread_id: str) -> bool:
    """Return whether a name is free: there is no such run, or it ended before its first call was finished."""
    registry = RunRegistry(store)
    if not await registry.has(thread_id):
        return True
    record = await registry.find(thread_id)
    if record.status not in ("failed", "running") or record.forked_from or record.embedded_in:
        return False
    found = [await store.asearch(namespace_of(thread_id, kind), limit=1) for kind in _PAID]
    return not any(found)


def _read(stored: Mapping[str, object]) -> RunRecord:
    try:
        return RunRecord.model_validate(stored)
    except ValidationError as error:
        raise StateFormatError(
            f"Run {stored.get('thread_id')!r} was stored by a version of drpo_graph that this one cannot read: {error}"
        ) from error
