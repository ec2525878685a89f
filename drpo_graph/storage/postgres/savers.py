"""LangGraph's PostgreSQL saver and store, each write fenced by the run's lease and tried again over short outages."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, LiteralString, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import BaseStore, GetOp, Item, Op, PutOp, Result, SearchOp
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from drpo_graph.errors import CheckpointError
from drpo_graph.storage.damage import UNREADABLE, read_json
from drpo_graph.storage.postgres.database import Connection, Database
from drpo_graph.storage.postgres.lease import Lease
from drpo_graph.storage.serializer import bind_writes, bound_to, check_bound, reading, tell_bound

_Result = TypeVar("_Result")
_INLINE = (str, int, float)
"""What LangGraph keeps in a JSON column; so it does with ``None``, which says nothing."""
_LATEST = "(SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = %(run)s AND checkpoint_ns = '')"
_KEEP_LATEST = (
    f"DELETE FROM checkpoint_writes WHERE thread_id = %(run)s AND (checkpoint_ns <> '' OR checkpoint_id <> {_LATEST})",
    f"DELETE FROM checkpoints WHERE thread_id = %(run)s AND (checkpoint_ns <> '' OR checkpoint_id <> {_LATEST})",
    """
    DELETE FROM checkpoint_blobs AS blob WHERE thread_id = %(run)s AND NOT EXISTS (
        SELECT FROM checkpoints AS one, jsonb_each_text(one.checkpoint -> 'channel_versions') AS used
        WHERE one.thread_id = blob.thread_id AND one.checkpoint_ns = blob.checkpoint_ns
        AND used.key = blob.channel AND used.value = blob.version
    )
    """,
)
"""Checkpoint ids sort by time; what a deleted checkpoint alone held goes with it."""
_GRACE_S = 2.0
"""What is being written when a run ends may take so long."""
_BY_TIME, _BY_KEY = "ORDER BY store.updated_at DESC", "ORDER BY store.prefix, store.key"
_UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that PostgreSQL's texts cannot hold: 0, and halves of surrogate pairs."""
_TEXT = "json"
"""The one key of a stored value: its JSON as a text."""
_WRAPPED = "drpo_graph/text"
"""The one key of what stands for a value that is not to stand in PostgreSQL's JSON: its own JSON as a text."""


class Fence:
    """One run's way into its database."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self.database = database
        self.lease = lease
        self._tasks: set[asyncio.Task[Any]] = set()
        """Those that are at a piece of work."""
        self._is_closed = False

    @asynccontextmanager
    async def closing(self) -> AsyncIterator["Fence"]:
        """Let nothing be written after the block: what is being written gets a moment, and is then cancelled."""
        try:
            yield self
        finally:
            # LangGraph leaves writes behind where a run fails or is cancelled, and nobody asks how they ended.
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_GRACE_S)
            self._is_closed = True
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Give a cursor whose statements are one transaction, which is refused unless the lease holds."""
        # In a pipeline, no reply is needed before the end. It would be a transaction by itself, but one that is
        # committed also where the block fails.
        async with self.database.connection() as connection, connection.pipeline(), connection.transaction():
            await self.lease.check(connection)
            async with connection.cursor(binary=True, row_factory=dict_row) as cursor:
                yield cursor

    async def attempt(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do a piece of work that may be done twice.

        Raises:
            LeaseLostError: the run may be another's by now.
            CheckpointError: the database is away, or refuses, or the run has ended in this process.
        """

        async def try_once() -> _Result:
            if self._is_closed:
                raise CheckpointError(
                    f"Run {self.lease.thread_id!r} has ended: this process writes nothing more of it."
                )
            try:
                return await work()
            except psycopg.Error as error:
                self.lease.note(error)
                raise

        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await self.database.attempt(try_once)
        finally:
            self._tasks.discard(task)


class PostgresStore(AsyncPostgresStore):
    """A store whose values come back exactly as they were put.

    PostgreSQL's own JSON sorts keys and refuses the character 0 and lone surrogates, which models may write. A value is
    therefore kept as ``{"json": "..."}``; ``(value->>'json')::json`` reads it in SQL.
    """

    def __init__(self, connection: Connection | None = None, *, fence: Fence | None = None) -> None:
        """Make a store that reads through one connection, or reads and writes behind a fence."""
        assert (connection is None) != (fence is None)
        # It is asked only for what is no JSON object.
        given: Any = fence.database.pool if fence is not None else connection
        super().__init__(given, deserializer=lambda _: UNREADABLE)
        self._fence = fence
        self._puts: dict[tuple[tuple[str, ...], str], list[asyncio.Event]] = {}
        """Of each key that is being put: an event per batch, set at its end."""

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations in one transaction; what is put at a key is put in the order of the calls."""
        given = list(ops)
        work = partial(super().abatch, [_encode(op) for op in given])
        async with self._in_turn({(op.namespace, op.key) for op in given if isinstance(op, PutOp)}):
            results = await (self._fence.attempt(work) if self._fence is not None else work())
        for result in results:
            for item in result if isinstance(result, list) else [result]:
                if isinstance(item, Item):
                    item.value = read_json(item.value[_TEXT]) if _TEXT in item.value else UNREADABLE
        return results

    @asynccontextmanager
    async def _in_turn(self, keys: Set[tuple[tuple[str, ...], str]]) -> AsyncIterator[None]:
        """Wait for the batches before that put at one of these keys: on connections of their own, any may be first."""
        done = asyncio.Event()
        before = [one for key in keys for one in self._puts.get(key, ())]
        for key in keys:
            self._puts.setdefault(key, []).append(done)
        try:
            for one in before:
                await one.wait()
            yield
        finally:
            done.set()
            for key in keys:
                self._puts[key].remove(done)
                if not self._puts[key]:
                    del self._puts[key]

    # At once, not by way of a background task: a page of records is asked for alone.
    asearch = BaseStore.asearch

    def _get_batch_GET_ops_queries(self, get_ops: Sequence[tuple[int, GetOp]]) -> Any:  # noqa: N802  # LangGraph's name.
        # The inherited query also renews expiry times, of which there are none here: that would be a write.
        asked: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        for index, op in get_ops:
            asked.setdefault(op.namespace, []).append((index, op.key))
        query = "SELECT key, value, created_at, updated_at FROM store WHERE prefix = %s AND key = ANY(%s)"
        return [
            (query, (".".join(namespace), [key for _, key in items]), namespace, items)
            for namespace, items in asked.items()
        ]

    def _prepare_batch_search_queries(self, search_ops: Sequence[tuple[int, SearchOp]]) -> Any:
        queries, embeddings = super()._prepare_batch_search_queries(search_ops)
        # Sorted by the time of their writing, records that were put together have no order between two pages.
        if not all(_BY_TIME in query for query, _ in queries):
            raise CheckpointError("This version of langgraph-checkpoint-postgres is not known: it sorts otherwise.")
        return [(query.replace(_BY_TIME, _BY_KEY), rest) for query, rest in queries], embeddings

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        used = self._fence.cursor() if self._fence is not None else super()._cursor(pipeline=pipeline)
        async with used as cursor:
            yield cursor


class PostgresSaver(AsyncPostgresSaver):
    """A saver behind a fence.

    LangGraph's own keeps texts and numbers in a JSON column, past the serializer; only what is in its blobs is sealed.
    """

    def __init__(self, fence: Fence, serde: SerializerProtocol | None = None, *, is_sealed: bool = False) -> None:
        """Make a saver; where the serializer seals, every value goes through it."""
        super().__init__(fence.database.pool, serde=serde)
        self._fence = fence
        self._is_sealed = is_sealed

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint.

        Raises:
            DamagedError: it is not what was stored, or holds what is not sealed and ought to be.
        """
        with reading(config):
            found = await self._fence.attempt(partial(super().aget_tuple, config))
            return None if found is None else check_bound(self._restore(found))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # LangGraph's name.
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first."""
        listing = partial(super().alist, config, filter=filter, before=before, limit=limit)

        async def collect() -> list[CheckpointTuple]:
            return [one async for one in listing()]

        with reading(config):
            listed = [check_bound(self._restore(found)) for found in await self._fence.attempt(collect)]
        for found in listed:
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save a checkpoint."""
        values = {name: self._wrap(value) for name, value in checkpoint["channel_values"].items()}
        fit: Checkpoint = {**checkpoint, "channel_values": values}
        with bound_to(config):
            return await self._fence.attempt(partial(super().aput, config, fit, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what a task of a superstep wrote."""
        bound = bind_writes(writes, task_id)
        with bound_to(config):
            await self._fence.attempt(partial(super().aput_writes, config, bound, task_id, task_path))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all of each thread's checkpoints, or all but the last one of its top graph.

        LangGraph's own keeps the last one of each finished subgraph too, and begins a transaction of another kind,
        which the fence's cannot be.

        Raises:
            ValueError: the strategy is unknown.
        """
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"Unknown prune strategy: {strategy!r}")
        for thread_id in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread_id)
            else:
                await self._fence.attempt(partial(self._execute, _KEEP_LATEST, thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread, and its events."""
        await self._fence.attempt(partial(super().adelete_thread, thread_id))
        delete_events = "DELETE FROM drpo_events WHERE thread_id = %(run)s"
        await self._fence.attempt(partial(self._execute, [delete_events], thread_id))

    def _restore(self, found: CheckpointTuple) -> CheckpointTuple:
        """Return a checkpoint with its values as they were saved."""
        values = found.checkpoint["channel_values"]
        if self._is_sealed and any(isinstance(value, _INLINE) for value in values.values()):
            raise tell_bound("an encrypted checkpoint holds a record that is not sealed: it was changed")
        for name, value in values.items():
            if isinstance(value, dict) and set(value) == {_WRAPPED}:
                values[name] = json.loads(value[_WRAPPED])
        return found

    def _wrap(self, value: object) -> object:
        """Return a channel's value in a form that PostgreSQL can hold, and anyone may see who reads its tables."""
        is_unfit = isinstance(value, str) and _UNFIT.search(value) is not None
        is_open = self._is_sealed and isinstance(value, _INLINE)
        return {_WRAPPED: json.dumps(value)} if is_unfit or is_open else value

    async def _execute(self, statements: Iterable[LiteralString], thread_id: str) -> None:
        # In one transaction, so that a kill leaves no checkpoint without its values.
        async with self._cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement, {"run": thread_id})

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        # One after the other, as LangGraph's own saver does it: checkpoints are committed in their order.
        async with self.lock, self._fence.cursor() as cursor:
            yield cursor


def _encode(op: Op) -> Op:
    if isinstance(op, SearchOp):
        # Nothing here expires: to look is not to write.
        return op._replace(refresh_ttl=False)
    if not isinstance(op, PutOp) or op.value is None:
        return op
    text = json.dumps(op.value, ensure_ascii=False, separators=(",", ":"))
    if _UNFIT.search(text):
        text = json.dumps(op.value, separators=(",", ":"))
    return op._replace(value={_TEXT: text})
