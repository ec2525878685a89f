"""A store of texts beside a graph's checkpoints, for graphs that have a checkpointer and no store."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.store.base import Op, PutOp, Result
from langgraph.store.memory import InMemoryStore

from drpo_graph.records import digest_json
from drpo_graph.stop import finish

_ANCHOR = "00000000-0000-6000-8000-000000000000"
"""The one checkpoint that all records of a run hang on, as what LangGraph calls pending writes."""


class CheckpointStore(InMemoryStore):
    """Holds one run's records in memory, and each change of them in the checkpointer too, before it is carried out.

    They stand in the run's thread, in a namespace of their own: deleted with the thread, sealed where its checkpoints
    are, and read once, when the run is first worked on in a process.

    Args:
        saver: The checkpointer of the graph that the run is a part of.
        thread_id: Its thread.
        run_id: The run.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any], *, thread_id: str, run_id: str) -> None:
        super().__init__()
        self._saver, self._thread_id, self._run_id = saver, thread_id, run_id
        self._config: Any = {
            "configurable": {"thread_id": thread_id, "checkpoint_ns": f"drpo-texts-{digest_json(run_id)[:16]}"}
        }
        self._lock = asyncio.Lock()
        self._num_changes = -1
        """Of the run so far; negative until they are read."""

    def of(self, run_id: str) -> "CheckpointStore":
        """Return the store of a run of the same thread: this one, or one of its own."""
        return (
            self if run_id == self._run_id else CheckpointStore(self._saver, thread_id=self._thread_id, run_id=run_id)
        )

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out reads and writes; writes are committed when this returns."""
        # A checkpointer that is cancelled between a write and its commit leaves its file locked.
        return await finish(self._carry_out(list(ops)))

    async def _carry_out(self, given: list[Op]) -> list[Result]:
        async with self._lock:
            if self._num_changes < 0:
                await self._load()
            puts = [op for op in given if isinstance(op, PutOp)]
            if puts:
                writes = [(json.dumps([*op.namespace, op.key]), op.value) for op in puts]
                await self._saver.aput_writes(self._at_anchor(), writes, f"{self._num_changes:012d}")
                self._num_changes += 1
        return super().batch(given)

    async def _load(self) -> None:
        found = await self._saver.aget_tuple(self._at_anchor())
        if found is None:
            checkpoint = {**empty_checkpoint(), "id": _ANCHOR}
            await self._saver.aput(self._config, checkpoint, {}, {})  # type: ignore[arg-type]
        # Each change is one task's: their ids are numbers, the later the higher.
        writes = sorted(found.pending_writes or () if found else (), key=lambda write: write[0])
        for _, place, value in writes:
            *namespace, key = json.loads(place)
            super().batch([PutOp(tuple(namespace), key, value)])
        self._num_changes = 1 + max((int(task_id) for task_id, _, _ in writes), default=-1)

    def _at_anchor(self) -> Any:
        return {"configurable": {**self._config["configurable"], "checkpoint_id": _ANCHOR}}
