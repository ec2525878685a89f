"""A PostgreSQL database as the place of runs."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial

from psycopg import sql

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.safety.encryption import read_vault
from drpo_graph.storage.postgres.database import connect, explained, no_runs, share_database
from drpo_graph.storage.postgres.events import EventWriter, open_stored_events
from drpo_graph.storage.postgres.lease import LEASE_S, Lease
from drpo_graph.storage.postgres.process import is_held
from drpo_graph.storage.postgres.savers import Fence, PostgresSaver, PostgresStore
from drpo_graph.storage.postgres.schema import TABLES, has_runs
from drpo_graph.storage.postgres.uri import Address
from drpo_graph.storage.protocols import Checkpoint, EventReader, Reader, Storage
from drpo_graph.storage.sealed_store import seal_store
from drpo_graph.storage.serializer import make_serializer


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

    def require(self) -> None:
        """Do nothing: whether there are runs is seen when it is opened."""

    @asynccontextmanager
    async def open_run(self, thread_id: str, *, must_exist: bool = False) -> AsyncIterator[Checkpoint]:
        """Hold a run and open its place for work."""
        vault = read_vault(os.environ)
        with explained(self._address):
            async with (
                share_database(self._address, must_exist=must_exist) as database,
                Lease(database, thread_id, lease_s=self._lease_s).held() as lease,
                Fence(database, lease).closing() as fence,
                EventWriter(fence, vault).writing() as events,
            ):
                saver = PostgresSaver(fence, make_serializer(vault), is_sealed=vault is not None)
                store = await seal_store(PostgresStore(fence=fence), vault, name=self.name, is_new=True)
                yield Checkpoint(
                    saver, store, self._explain, hold=lease, sinks=(events,), last_seq=events.last, vault=vault
                )

    @asynccontextmanager
    async def open_for_reading(self, *, lost: list[DamagedError] | None = None) -> AsyncIterator[Reader]:
        """Open the database to look at runs."""
        async with connect(self._address, is_reader=True) as connection:
            if not await has_runs(connection):
                raise no_runs(self._address)
            vault = read_vault(os.environ)
            store = await seal_store(PostgresStore(connection), vault, name=self.name, is_new=False, lost=lost)
            yield Reader(store, partial(is_held, connection))

    async def measure(self) -> int:
        """Return the bytes of all tables of runs, with their indexes."""
        async with connect(self._address, is_reader=True) as connection:
            sizes = (
                "SELECT sum(pg_total_relation_size(to_regclass(name)))::bigint AS size FROM unnest(%s::text[]) AS name"
            )
            row = await (await connection.execute(sizes, (list(TABLES),))).fetchone()
            return 0 if row is None else int(row["size"] or 0)

    async def reclaim(self) -> None:
        """Rewrite the tables without what was deleted; while a worker works, only make the room free for new records.

        A table that is rewritten is closed to others meanwhile: a worker that begins then waits for it.
        """
        async with connect(self._address) as connection:
            live = await connection.execute("SELECT 1 FROM drpo_leases WHERE expires_at > clock_timestamp() LIMIT 1")
            way = "ANALYZE" if await live.fetchone() else "FULL, ANALYZE"
            for table in TABLES:
                vacuum = sql.SQL("VACUUM ({}) {}").format(sql.SQL(way), sql.Identifier(table))
                await connection.execute(vacuum)

    def open_events(
        self, thread_id: str, log_dir: str | None, *, held_as: str | None = None
    ) -> AbstractContextManager[EventReader]:
        """Open a run's events; no file is needed."""
        return open_stored_events(self._address, thread_id, held_as=held_as or thread_id)

    def _explain(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"Checkpoint {self.name}: {error}. Mend it, then run `drpo resume`.")
