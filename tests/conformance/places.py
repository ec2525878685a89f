"""Where a user's graphs keep their checkpoints and their store: each pair is opened again as a new process would."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite.aio import AsyncSqliteStore

PAIRS = {
    f"{saver}, {'no store' if store is None else f'{store} store'}": (saver, store)
    for saver, store in (
        ("SQLite", None),
        ("SQLite", "SQLite"),
        ("memory", None),
        ("memory", "memory"),
        ("PostgreSQL", None),
        ("PostgreSQL", "PostgreSQL"),
    )
}
"""Checkpointers and stores that a user has, by a name for the pair."""

MARKED_PAIRS = [
    pytest.param(name, marks=[pytest.mark.postgres] if "PostgreSQL" in pair else []) for name, pair in PAIRS.items()
]


@dataclass
class Place:
    """One thread's checkpointer and store."""

    saver: str
    store: str | None
    folder: Path
    """Where files are kept."""
    make_database: Callable[[], str]
    """Returns the URI of an empty database."""
    _kept: dict[str, Any] = field(default_factory=dict)
    """What is in memory, and the database's URI."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Mapping[str, Any]]:
        """Give the keyword arguments that a graph is compiled with; all connections are closed at the end."""
        async with AsyncExitStack() as stack:
            how = {"checkpointer": await self._open_saver(stack)}
            if self.store is not None:
                how["store"] = await self._open_store(stack)
            yield how

    async def _open_saver(self, stack: AsyncExitStack) -> Any:
        if self.saver == "memory":
            return self._kept.setdefault("saver", InMemorySaver())
        if self.saver == "SQLite":
            path = str(self.folder / "checkpoints.sqlite")
            return await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        saver = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(self._uri()))
        await saver.setup()
        return saver

    async def _open_store(self, stack: AsyncExitStack) -> Any:
        if self.store == "memory":
            return self._kept.setdefault("store", InMemoryStore())
        store: Any
        if self.store == "SQLite":
            path = str(self.folder / "store.sqlite")
            store = await stack.enter_async_context(AsyncSqliteStore.from_conn_string(path))
        else:
            from langgraph.store.postgres.aio import AsyncPostgresStore

            store = await stack.enter_async_context(AsyncPostgresStore.from_conn_string(self._uri()))
        await store.setup()
        return store

    def _uri(self) -> str:
        if "uri" not in self._kept:
            self._kept["uri"] = self.make_database()
        return str(self._kept["uri"])
