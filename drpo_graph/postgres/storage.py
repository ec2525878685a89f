"""A PostgreSQL database as the place of runs."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from drpo_graph.errors import CheckpointError
from drpo_graph.postgres.address import Address
from drpo_graph.postgres.database import Connection, connect, no_runs, share_database
from drpo_graph.postgres.events import EventWriter, open_stored_events
from drpo_graph.postgres.lease import LEASE_S, Lease, find_holding
from drpo_graph.postgres.records import Fence, PostgresSaver, PostgresStore
from drpo_graph.postgres.schema import has_runs
from drpo_graph.storage import RUNS_FOLDER, Checkpoint, EventReader, Storage


class PostgresStorage(Storage):
    """Keeps runs in a database; a run is held by a lease, which ends by itself when its worker is gone."""

    def __init__(self, uri: str, *, lease_s: float = LEASE_S) -> None:
        """Make a storage; nothing is opened yet.

        Args:
            uri: Of the database, ``postgresql://...``; what it leaves out, libpq finds where it always does.
            lease_s: How long a run stays held after its worker's last sign of life.

        Raises:
            UsageError: the URI cannot be read.
        """
        self._address = Address(uri)
        self._lease_s = lease_s

    @property
    def name(self) -> str:
        """The URI without its password."""
        return self._address.name

    @property
    def folder(self) -> Path:
        """Where run folders are: under the folder that one works in."""
        return RUNS_FOLDER

    def require(self) -> None:
        """Do nothing: whether there are runs is seen when it is opened."""

    def exists(self) -> bool:
        """Return true: a database is never created."""
        return True

    @asynccontextmanager
    async def open_run(self, thread_id: str, *, must_exist: bool = False) -> AsyncIterator[Checkpoint]:
        """Hold a run and open its place for work."""
        async with (
            share_database(self._address, must_exist=must_exist) as database,
            Lease(database, thread_id, lease_s=self._lease_s).held() as lease,
            Fence(database, lease).closing() as fence,
            EventWriter(fence).writing() as events,
        ):
            saver, store = PostgresSaver(fence), PostgresStore(fence=fence)
            yield Checkpoint(saver, store, self._explain, hold=lease, sinks=(events,))

    @asynccontextmanager
    async def open_for_reading(self) -> AsyncIterator["DatabaseReader"]:
        """Open the database to look at runs."""
        async with connect(self._address, is_reader=True) as connection:
            if not await has_runs(connection):
                raise no_runs(self._address)
            yield DatabaseReader(connection)

    def open_events(self, thread_id: str, log_dir: str | None) -> AbstractContextManager[EventReader]:
        """Open a run's events; no file is needed."""
        return open_stored_events(self._address, thread_id)

    def _explain(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"Checkpoint {self.name}: {error}. Mend it, then run `drpo resume`.")


class DatabaseReader:
    """A database that is open for reading."""

    def __init__(self, connection: Connection) -> None:
        self.store = PostgresStore(connection)
        self._connection = connection

    async def is_worked_on(self, thread_id: str) -> bool:
        """Return whether a process works on a run at this moment."""
        found = await find_holding(self._connection, thread_id)
        return found is not None and found.is_live
