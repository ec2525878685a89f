"""The tables: LangGraph's own, and ours for leases and events; brought up to date by one process at a time."""

import asyncio
import time
from collections.abc import Mapping

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from drpo_graph.errors import CheckpointError

LEASE_LOST = "DRP01"
"""SQLSTATE of a write that the lease of its run no longer covers."""

_LOCK = "hashtextextended('drpo_graph/migrations', 0)"
_PAUSE_S = 0.1
_WAIT_S = 120.0
"""So long may another process take to bring the tables up to date."""

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "store", "drpo_events")
"""Those that grow with runs."""

MIGRATIONS = (
    """
    CREATE TABLE IF NOT EXISTS drpo_leases (
        thread_id text PRIMARY KEY,
        holder text NOT NULL,
        host text NOT NULL,
        pid integer NOT NULL,
        process text,
        length_s double precision NOT NULL,
        expires_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS drpo_events (
        thread_id text NOT NULL,
        position bigint NOT NULL,
        event text NOT NULL,
        PRIMARY KEY (thread_id, position)
    )
    """,
    # The lock is shared by the writes of a run's holder and taken alone by whoever takes the run over, so that a write
    # is committed before the takeover or refused after it. It comes first: the row is then read as it is by now.
    f"""
    CREATE OR REPLACE FUNCTION drpo_check_lease(run text, who text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('drpo_graph/runs/' || run, 0));
        IF NOT EXISTS (
            SELECT FROM drpo_leases WHERE thread_id = run AND holder = who AND expires_at > clock_timestamp()
        ) THEN
            RAISE EXCEPTION 'the lease of run % is lost', run USING ERRCODE = '{LEASE_LOST}';
        END IF;
    END
    $$
    """,
)
_VERSIONS = {
    "checkpoint_migrations": len(AsyncPostgresSaver.MIGRATIONS) - 1,
    "store_migrations": len(AsyncPostgresStore.MIGRATIONS) - 1,
    "drpo_migrations": len(MIGRATIONS) - 1,
}


def held_by(key: str) -> str:
    """Return the query for the processes that hold an advisory lock of this database."""
    return f"""
        SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32) | objid::bigint = {key}
    """


_HOLDER = f"""
    SELECT pid, application_name, client_addr::text, backend_start::text FROM pg_stat_activity
    WHERE pid IN ({held_by(_LOCK)}) LIMIT 1
"""


async def has_runs(connection: AsyncConnection[DictRow]) -> bool:
    """Return whether the database holds our tables, of whatever version."""
    return (await _version(connection, "drpo_migrations")) >= 0


async def migrate(connection: AsyncConnection[DictRow]) -> None:
    """Create or update the tables, unless they are up to date: then nothing but reading is needed.

    Raises:
        CheckpointError: another process is at it, and does not end.
        psycopg.Error: the database refuses, or is gone.
    """
    if await _is_up_to_date(connection):
        return
    await _take_turn(connection)
    try:
        if await _is_up_to_date(connection):
            return
        await AsyncPostgresSaver(connection).setup()
        await AsyncPostgresStore(connection).setup()
        await connection.execute("CREATE TABLE IF NOT EXISTS drpo_migrations (v integer PRIMARY KEY)")
        for version in range(await _version(connection, "drpo_migrations") + 1, len(MIGRATIONS)):
            async with connection.transaction():
                await connection.execute(MIGRATIONS[version].encode())
                await connection.execute("INSERT INTO drpo_migrations (v) VALUES (%s)", (version,))
    finally:
        if not connection.closed:
            await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})".encode())


async def _take_turn(connection: AsyncConnection[DictRow]) -> None:
    """Return when no other process brings the tables up to date.

    Raises:
        CheckpointError: one does not end.
    """
    given_up_at = time.monotonic() + _WAIT_S
    # Asked again and again, not waited for: LangGraph creates indexes concurrently, which waits for every open
    # transaction, and a process that waits for a lock is in one.
    while not await fetch_value(connection, f"SELECT pg_try_advisory_lock({_LOCK}) AS value"):
        if time.monotonic() >= given_up_at:
            holder = await (await connection.execute(_HOLDER.encode())).fetchone()
            known = ", ".join(f"{name} {value}" for name, value in (holder or {}).items() if value)
            raise CheckpointError(
                f"Another process has been bringing the database's tables up to date for {_WAIT_S:.0f} s "
                f"({known or 'it is not known which'}). Wait for it, or end it with pg_terminate_backend(pid)."
            )
        await asyncio.sleep(_PAUSE_S)


async def _is_up_to_date(connection: AsyncConnection[DictRow]) -> bool:
    # A newer version's tables are left as they are.
    return all([await _version(connection, table) >= version for table, version in _VERSIONS.items()])


async def _version(connection: AsyncConnection[DictRow], table: str) -> int:
    if not await fetch_value(connection, f"SELECT to_regclass('{table}') IS NOT NULL AS value"):
        return -1
    return int(str(await fetch_value(connection, f"SELECT coalesce(max(v), -1) AS value FROM {table}")))


async def fetch_value(
    connection: AsyncConnection[DictRow], query: str, parameters: Mapping[str, object] | None = None
) -> object:
    """Return what a query gives as ``value``, or ``None`` when it gives no row."""
    row = await (await connection.execute(query.encode(), parameters)).fetchone()
    return row["value"] if row is not None else None
