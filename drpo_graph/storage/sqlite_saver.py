"""LangGraph's SQLite saver and store, called in the event loop's own thread.

Their asynchronous versions hop to a worker thread for every statement, about thirty hops per model call, and each hop
waits for the interpreter lock: about a fifth of a call's CPU. A commit in WAL mode is a short write
to the page cache, so doing it in place is both cheaper and sooner durable.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.store.base import Op, Result
from langgraph.store.sqlite import SqliteStore

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _in_place(
    method: Callable[Concatenate[SqliteSaver, _Given], _Result],
) -> Callable[Concatenate[SqliteSaver, _Given], Coroutine[Any, Any, _Result]]:
    async def call(saver: SqliteSaver, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return method(saver, *args, **kwargs)

    return call


class InlineSqliteStore(SqliteStore):
    """A SQLite store whose asynchronous methods run in place."""

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations in one transaction."""
        return self.batch(ops)


class InlineSqliteSaver(SqliteSaver):
    """A SQLite saver whose asynchronous methods run in place."""

    aget_tuple = _in_place(SqliteSaver.get_tuple)
    aput = _in_place(SqliteSaver.put)
    aput_writes = _in_place(SqliteSaver.put_writes)
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
        for found in self.list(config, filter=filter, before=before, limit=limit):
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
