"""LangGraph's SQLite saver and store, called in the event loop's own thread.

Their asynchronous versions hop to a worker thread for every statement, about thirty hops per model call, and each hop
waits for the interpreter lock: about a fifth of a call's CPU. A commit in WAL mode is a short write
to the page cache, so doing it in place is both cheaper and sooner durable.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.store.base import GetOp, Op, Result
from langgraph.store.sqlite import SqliteStore

from drpo_graph.storage.damage import read_json, tell_damage, tell_record
from drpo_graph.storage.serializer import bind_writes, bound_to, check_bound, reading

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _in_place(
    method: Callable[Concatenate[Any, _Given], _Result],
) -> Callable[Concatenate[Any, _Given], Coroutine[Any, Any, _Result]]:
    async def call(saver: Any, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return method(saver, *args, **kwargs)

    return call


class InlineSqliteStore(SqliteStore):
    """A SQLite store whose asynchronous methods run in place."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, deserializer=read_json)  # type: ignore[arg-type]  # It is given bytes or a text.

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations in one transaction.

        Raises:
            DamagedError: a row cannot be read.
        """
        given = list(ops)
        try:
            return super().batch(given)
        except ValueError as error:
            # LangGraph wraps what SQLite says; without a cause, it is the time in a row.
            if isinstance(error.__cause__, sqlite3.Error):
                raise error.__cause__ from None
            first = given[0]
            if not isinstance(first, GetOp):
                raise tell_damage("The checkpoint", cause="a row of it cannot be read") from error
            raise tell_record(first.namespace, first.key, cause="it cannot be read") from error

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations in one transaction."""
        return self.batch(ops)


class InlineSqliteSaver(SqliteSaver):
    """A SQLite saver whose asynchronous methods run in place, and whose records are bound to their run."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint.

        Raises:
            DamagedError: it is not what was stored.
        """
        with reading(config):
            found = super().get_tuple(config)
            return None if found is None else check_bound(found)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save a checkpoint."""
        with bound_to(config):
            return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what a task of a superstep wrote."""
        with bound_to(config):
            super().put_writes(config, bind_writes(writes, task_id), task_id, task_path)

    aget_tuple = _in_place(get_tuple)
    aput = _in_place(put)
    aput_writes = _in_place(put_writes)
    adelete_thread = _in_place(SqliteSaver.delete_thread)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, the newest first."""
        with reading(config):
            listed = list(map(check_bound, self.list(config, filter=filter, before=before, limit=limit)))
        for found in listed:
            yield found

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all of each thread's checkpoints, or all but the last one of its top graph.

        A subgraph's checkpoints are of use only while the superstep that it belongs to is in work.
        """
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown prune strategy: {strategy!r}")
        for thread_id in thread_ids:
            if strategy == "delete":
                self.delete_thread(thread_id)
                continue
            with self.cursor() as cursor:
                for table in ("checkpoints", "writes"):
                    cursor.execute(
                        f"DELETE FROM {table} WHERE thread_id = ? AND (checkpoint_ns != '' OR checkpoint_id != "
                        "(SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''))",
                        (thread_id, thread_id),
                    )
