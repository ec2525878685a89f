"""A run's events in the database: written in batches beside the run, read from anywhere."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from drpo_graph.errors import CheckpointError
from drpo_graph.events.log import StoredLine, event_line, open_event_line
from drpo_graph.events.schema import Event
from drpo_graph.safety.encryption import Vault, read_vault
from drpo_graph.storage.postgres.database import explained
from drpo_graph.storage.postgres.process import FIND_HOLDING, Holding
from drpo_graph.storage.postgres.savers import Fence
from drpo_graph.storage.postgres.uri import Address

_GATHER_S = 0.05
"""What happens within it is written together."""
_FLUSH_S = 2.0
"""So long may the last events of a cancelled run take to be written."""
_PAGE = 500

logger = logging.getLogger(__name__)


class EventWriter:
    """Takes events at once and commits them soon after, in order."""

    def __init__(self, fence: Fence, vault: Vault | None) -> None:
        self._fence = fence
        self._vault = vault
        self._thread_id = fence.lease.thread_id
        self._last_by_run: dict[str, int] = {}
        """Number of each run's last event that was taken, or found when the block began."""
        self._waiting: list[tuple[str, int, str]] = []
        """Run, number and event; of the one that holds the place, or of others that it works for."""
        self._has_some = asyncio.Event()
        self._is_closing = False
        self._error: CheckpointError | None = None

    def __call__(self, event: Event) -> None:
        """Take one event.

        Raises:
            CheckpointError: earlier ones could not be written.
        """
        if self._error is not None:
            raise self._error
        # Its own number, which is what readers go on from. None is lost to one that is not numbered.
        number = self._last_by_run[event.run_id] = max(event.seq, self._last_by_run.get(event.run_id, 0) + 1)
        self._waiting.append((event.run_id, number, event_line(event, self._vault).decode().rstrip("\n")))
        self._has_some.set()

    @property
    def last(self) -> int:
        """Number of the last event of the run that holds the place."""
        return self._last_by_run.get(self._thread_id, 0)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator["EventWriter"]:
        """Write events for as long as the block lasts, and those that are left at its end.

        Raises:
            CheckpointError: some could not be written.
        """
        self._last_by_run[self._thread_id] = await self._fence.attempt(self._find_last)
        task = asyncio.create_task(self._write_all())
        try:
            yield self
        except BaseException as ending:
            # What ended the run is what to tell.
            await self._finish(task, within_s=_FLUSH_S if isinstance(ending, asyncio.CancelledError) else None)
            if self._waiting and not isinstance(ending, CheckpointError) and not self._fence.lease.is_lost:
                why, num_left = self._error or "there was no time for it", len(self._waiting)
                logger.warning("run %s: its last %d events are not stored: %s", self._thread_id, num_left, why)
            raise
        await self._finish(task)
        task.result()
        if self._error is not None:
            raise self._error

    async def _finish(self, task: "asyncio.Task[None]", *, within_s: float | None = None) -> None:
        # Told to end, not cancelled: what is being written is then known to be written or not.
        self._is_closing = True
        self._has_some.set()
        try:
            await asyncio.wait({task}, timeout=within_s)
        finally:
            task.cancel()

    async def _write_all(self) -> None:
        is_last = False
        while not is_last:
            await self._has_some.wait()
            if not self._is_closing:
                await asyncio.sleep(_GATHER_S)
            # Before writing, so that what is said meanwhile is heard.
            self._has_some.clear()
            is_last = self._is_closing
            try:
                await self._write_waiting()
            except CheckpointError as error:
                # The next event raises it, where the run can be ended by it.
                self._error = error
                return

    async def _write_waiting(self) -> None:
        while self._waiting and not self._fence.lease.is_lost:
            run_id, of_run = next(groupby(self._waiting[:_PAGE], key=itemgetter(0)))
            batch = [one[1:] for one in of_run]
            # Cancelled in between, it is done again, at the same positions: that changes nothing.
            await self._fence.attempt(partial(self._insert, run_id, batch))
            del self._waiting[: len(batch)]

    async def _insert(self, run_id: str, batch: list[tuple[int, str]]) -> None:
        async with self._fence.cursor() as cursor:
            await cursor.execute(
                """
                INSERT INTO drpo_events (thread_id, position, event)
                SELECT %s, position, event FROM unnest(%s::bigint[], %s::text[]) AS one(position, event)
                ON CONFLICT DO NOTHING
                """,
                (run_id, [position for position, _ in batch], [event for _, event in batch]),
            )

    async def _find_last(self) -> int:
        async with self._fence.cursor() as cursor:
            await cursor.execute(
                "SELECT coalesce(max(position), 0) AS last FROM drpo_events WHERE thread_id = %s", (self._thread_id,)
            )
            row = await cursor.fetchone()
            assert row is not None, "an aggregate has one row"
            return int(row["last"])


class StoredEvents:
    """Reads a run's events, also while they are written.

    Each method raises a :class:`CheckpointError` where the database is gone.
    """

    def __init__(self, connection: "Connection[TupleRow]", address: Address, thread_id: str, *, held_as: str) -> None:
        self._connection = connection
        self._address = address
        self._thread_id = thread_id
        self._held_as = held_as
        self._position = 0

    def read(self, since: int = 0) -> Iterator[StoredLine]:
        """Yield the events that are not read yet, one line each, without those up to a number."""
        self._position = max(self._position, since)
        while True:
            with explained(self._address):
                rows = self._connection.execute(
                    "SELECT position, event FROM drpo_events WHERE thread_id = %s AND position > %s "
                    "ORDER BY position LIMIT %s",
                    (self._thread_id, self._position, _PAGE),
                ).fetchall()
            if not rows:
                return
            for self._position, event in rows:
                yield StoredLine(event, self._position)

    def open_line(self, line: str) -> str:
        """Return a line as JSON; of sealed events, opened."""
        # With a key, no plain line either: it was put there by somebody without the key.
        return open_event_line(line, read_vault(os.environ), thread_id=self._thread_id)

    def is_written(self) -> bool:
        """Return whether a process works on the run, so that more events may come."""
        with explained(self._address), self._connection.cursor(row_factory=class_row(Holding)) as cursor:
            found = cursor.execute(FIND_HOLDING, (self._held_as,)).fetchone()
        return found is not None and found.is_live


@contextmanager
def open_stored_events(address: Address, thread_id: str, *, held_as: str) -> Iterator[StoredEvents]:
    """Open a run's events to read them.

    Raises:
        CheckpointError: the database cannot be read.
    """
    with explained(address):
        connection = psycopg.connect(address.conninfo, autocommit=True)
        connection.execute("SET default_transaction_read_only = on")
    with connection:
        yield StoredEvents(connection, address, thread_id, held_as=held_as)
