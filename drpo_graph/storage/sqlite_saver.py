"""LangGraph's SQLite saver and store, called in the event loop's own thread.

Their asynchronous versions hop to a worker thread for every statement, about thirty hops per model call, and each hop
waits for the interpreter lock: about a fifth of a call's CPU. A commit in WAL mode is a short write
to the page cache, so doing it in place is both cheaper and sooner durable.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.store.base import Op, Result
from langgraph.store.sqlite import SqliteStore


class InlineSqliteStore(SqliteStore):
    """A SQLite store whose asynchronous methods run in place."""

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute a batch of operations in one transaction."""
        return self.batch(ops)


class InlineSqliteSaver(SqliteSaver):
    """A SQLite saver whose asynchronous methods run in place."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint."""
        return self.get_tuple(config)

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

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save a checkpoint."""
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what a task of a superstep wrote."""
        self.put_writes(config, writes, task_id, task_path)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
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

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all of each thread's checkpoints, or all but the last one of its top graph."""
        self.prune(thread_ids, strategy=strategy)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread."""
        self.delete_thread(thread_id)
