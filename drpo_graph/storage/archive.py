"""Where a run's texts stand, once each: the LangGraph store, by run and kind of record.

The graph's state holds ids; the archive holds what they name. Every write is a pure function of finished calls, so
writing again after a resume changes nothing.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from itertools import islice
from typing import Literal, NotRequired, TypeVar, cast

from langgraph.store.base import BaseStore, GetOp, Item, PutOp
from langgraph.store.base.batch import AsyncBatchedBaseStore
from pydantic import BaseModel, JsonValue, TypeAdapter
from typing_extensions import TypedDict

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.records import MetricSelection, Origin, Query, RejectedRewrite, Rollout
from drpo_graph.stop import finish
from drpo_graph.storage.damage import LOST, valid
from drpo_graph.storage.sealed_store import BoundStore

Kind = Literal[
    "calls",
    "candidates",
    "rollouts",
    "metrics",
    "levels",
    "queries",
    "run",
    "learned",
    "capabilities",
    "expansions",
    "examples",
    "failures",
    "budget",
    "responses",
    "reviews",
    "questions",
    "prompts",
    "trials",
    "vectors",
]

STORE_ERRORS = (sqlite3.Error, OSError, CheckpointError)
"""What a store raises that cannot be read or written."""

Change = tuple[Kind, str]
"""The place of a record to be changed: its kind and key."""

M = TypeVar("M", bound=BaseModel)

T = TypeVar("T")

_PAGE = 500
_CACHE_ENTRIES = 4096


class StoredCandidate(TypedDict):
    """A candidate's text and descent; rewards are in its level's record."""

    id: str
    parent_id: str | None
    depth: int
    origin: Origin
    prompt: str
    author: NotRequired[str]
    """Who wrote it, where a person did."""


class StoredScore(TypedDict):
    """A candidate's rewards, as its level's scoring left them."""

    id: str
    reward: float | None
    path_reward: float | None


class StoredLevel(TypedDict):
    """What scoring a level decided."""

    level: int
    query_ids: list[str]
    children: list[StoredScore]
    """In creation order."""
    beam: list[str]
    is_easy: bool
    """Whether a parent of this level was kept for being good enough."""
    max_depth: int


_candidate_form = TypeAdapter(StoredCandidate)
_level_form = TypeAdapter(StoredLevel)


def namespace_of(run_id: str, kind: Kind) -> tuple[str, ...]:
    """Return the store namespace of a run's records of one kind; periods, which LangGraph forbids, are escaped."""
    return ("drpo", run_id.replace("%", "%25").replace(".", "%2E"), kind)


async def list_items(store: BaseStore, namespace: tuple[str, ...]) -> AsyncIterator[Item]:
    """Yield all that a store holds in a namespace, a page at a time."""
    num_seen = 0
    while True:
        page = await _wait_for(store, store.asearch(namespace, limit=_PAGE, offset=num_seen))
        for item in page:
            if item.value is not LOST:
                yield item
        num_seen += len(page)
        if len(page) < _PAGE:
            return


async def _wait_for(store: BaseStore, work: Coroutine[object, object, T]) -> T:
    """Return what a store is asked for. LangGraph's on SQLite, cancelled in a transaction, refuses all others."""
    return await (finish(work) if isinstance(store, AsyncBatchedBaseStore) else work)


class Archive:
    """One run's records in a LangGraph store, with a bounded cache of what was read or written last.

    What the graph's state names must be there: :meth:`candidate`, :meth:`prompt_of`, :meth:`query_order`,
    :meth:`query` and :meth:`rollout` raise a :class:`DamagedError` where the store does not hold it.
    """

    def __init__(self, store: BaseStore, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._cache: OrderedDict[Change, Mapping[str, JsonValue]] = OrderedDict()

    async def put(self, kind: Kind, key: str, value: Mapping[str, JsonValue]) -> None:
        """Store a record; it is committed when this returns."""
        await self.put_all(kind, {key: value})

    async def put_all(self, kind: Kind, values: Mapping[str, Mapping[str, JsonValue]]) -> None:
        """Store records of one kind, in transactions of at most 500: a database takes so many values at once."""
        left = iter(values.items())
        while batch := {(kind, key): value for key, value in islice(left, _PAGE)}:
            await self.change(batch)

    async def change(self, values: Mapping[Change, Mapping[str, JsonValue] | None]) -> None:
        """Store records of any kind, and delete those whose value is ``None``, in one transaction."""
        puts = [
            PutOp(namespace_of(self.run_id, kind), key, None if value is None else dict(value), index=False)
            for (kind, key), value in values.items()
        ]
        # One batch of writes only: SQLite refuses a transaction that turns from reading to writing beside a writer.
        if puts:
            await _wait_for(self._store, self._store.abatch(puts))
        for (kind, key), value in values.items():
            if value is None:
                self._cache.pop((kind, key), None)
            else:
                self._remember(kind, key, value)

    async def get(self, kind: Kind, key: str) -> Mapping[str, JsonValue] | None:
        """Return a record, or ``None`` when there is none."""
        cached = self._cache.get((kind, key))
        if cached is not None:
            return cached
        asked = GetOp(namespace_of(self.run_id, kind), key, refresh_ttl=False)
        (item,) = await _wait_for(self._store, self._store.abatch([asked]))
        if not isinstance(item, Item) or item.value is LOST:
            return None
        self._remember(kind, key, item.value)
        return item.value

    async def get_all(self, kind: Kind) -> dict[str, Mapping[str, JsonValue]]:
        """Return every record of one kind by key, past the cache."""
        return {item.key: item.value async for item in list_items(self._store, namespace_of(self.run_id, kind))}

    async def record(self, kind: Kind, key: str, form: type[M]) -> M | None:
        """Return a record in its form, or ``None`` when there is none.

        Raises:
            DamagedError: it has another form. What earlier versions stored carries no sum that would have told.
        """
        stored = await self.get(kind, key)
        return None if stored is None else self._read(stored, kind, key, form)

    async def records(self, kind: Kind, form: type[M]) -> dict[str, M]:
        """Return every record of one kind by key in its form, past the cache.

        Raises:
            DamagedError: one has another form.
        """
        items = list_items(self._store, namespace_of(self.run_id, kind))
        return {item.key: self._read(item.value, kind, item.key, form) async for item in items}

    async def keys(self, kind: Kind) -> list[str]:
        """Return the keys of all records of one kind, those that are damaged too."""
        store = self._store.inner if isinstance(self._store, BoundStore) else self._store
        return [item.key async for item in list_items(store, namespace_of(self.run_id, kind))]

    async def candidate(self, candidate_id: str) -> StoredCandidate:
        """Return a candidate's text and descent."""
        stored = await self._demand("candidates", candidate_id, what="candidate")
        with valid(self.run_id, f"its record candidates/{candidate_id[:80]}"):
            return _candidate_form.validate_python(stored)

    async def prompt_of(self, candidate_id: str) -> str:
        """Return a candidate's prompt."""
        return (await self.candidate(candidate_id))["prompt"]

    async def query_order(self) -> list[str]:
        """Return the ids of the training queries in the run's order."""
        return cast(list[str], (await self._demand("run", "order", what="record"))["query_ids"])

    async def query(self, query_id: str) -> Query:
        """Return a query of the run."""
        return self._read(await self._demand("queries", query_id, what="query"), "queries", query_id, Query)

    async def rollout(self, candidate_id: str, query_id: str) -> Rollout:
        """Return a finished rollout."""
        key = rollout_key(candidate_id, query_id)
        return self._read(await self._demand("rollouts", key, what="rollout"), "rollouts", key, Rollout)

    async def metrics_for(self, query_id: str) -> MetricSelection | None:
        """Return the metrics selected for a query, or ``None`` when none are yet."""
        return await self.record("metrics", query_id, MetricSelection)

    async def rejected_rewrites(self) -> list[RejectedRewrite]:
        """Return what a former run tried and found worse; none where the run has no warm start."""
        stored = await self.get("run", "warm_start")
        rejected = stored["rejected"] if stored is not None else None
        return [RejectedRewrite.model_validate(one) for one in rejected] if isinstance(rejected, list) else []

    async def levels(self, *, lost: list[DamagedError] | None = None) -> list[StoredLevel]:
        """Return what scoring decided, by level.

        Args:
            lost: Gets what has not the form of a level, if given, and the others are returned.
        """
        levels = []
        for key, stored in sorted((await self.get_all("levels")).items()):
            try:
                with valid(self.run_id, f"its record levels/{key[:80]}"):
                    levels.append(_level_form.validate_python(stored))
            except DamagedError as error:
                if lost is None:
                    raise
                lost.append(error)
        return levels

    async def put_candidates(self, candidates: Iterable[StoredCandidate]) -> None:
        """Store candidates by id."""
        await self.put_all("candidates", {one["id"]: _as_json(one) for one in candidates})

    async def put_rollout(self, rollout: Rollout) -> None:
        """Store a finished rollout."""
        key = rollout_key(rollout.candidate_id, rollout.query_id)
        await self.put("rollouts", key, rollout.model_dump(mode="json"))

    async def put_levels(self, *levels: StoredLevel) -> None:
        """Store what scoring decided."""
        await self.put_all("levels", {f"{one['level']:06d}": _as_json(one) for one in levels})

    def _remember(self, kind: Kind, key: str, value: Mapping[str, JsonValue]) -> None:
        self._cache[kind, key] = value
        self._cache.move_to_end((kind, key))
        if len(self._cache) > _CACHE_ENTRIES:
            self._cache.popitem(last=False)

    def _read(self, stored: Mapping[str, JsonValue], kind: Kind, key: str, form: type[M]) -> M:
        with valid(self.run_id, f"its record {kind}/{key[:80]}"):
            return form.model_validate(stored)

    async def _demand(self, kind: Kind, key: str, *, what: str) -> Mapping[str, JsonValue]:
        stored = await self.get(kind, key)
        if stored is None:
            raise DamagedError(
                f"Run {self.run_id!r} is damaged: its checkpoint names {what} {key!r}, which its store does not hold. "
                f"Resume with the store that the run was started with; `drpo export {self.run_id} --output DIR` writes "
                "what can be read of it.",
                thread_id=self.run_id,
            )
        return stored


def scores_by_candidate(levels: Iterable[StoredLevel]) -> dict[str, tuple[float | None, float | None]]:
    """Return reward and path reward of every candidate whose level is scored, in creation order."""
    return {child["id"]: (child["reward"], child["path_reward"]) for level in levels for child in level["children"]}


def rollout_key(candidate_id: str, query_id: str) -> str:
    """Return the archive key of one candidate's rollout on one query."""
    return f"{candidate_id}/{query_id}"


def _as_json(value: StoredCandidate | StoredLevel) -> dict[str, JsonValue]:
    return {**value}  # type: ignore[dict-item]  # A TypedDict of JSON-native fields.
