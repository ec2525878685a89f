"""A database's connections, shared by all runs of an event loop; short outages are waited out, others explained."""

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from drpo_graph.errors import CheckpointError, NoRunsError
from drpo_graph.storage.damage import tell_damage
from drpo_graph.storage.postgres.schema import has_runs, migrate
from drpo_graph.storage.postgres.uri import Address

PATIENCE_S = 20.0
"""How long an outage is waited out: from its first failed statement, whoever's it was."""
_PAUSE_S = 0.2
_RECONNECT_S = 1.0
"""While the database is away, a new connection is asked for so often; the pool's own pauses would grow and grow."""
_MAX_CONNECTIONS = 8
_MAX_LEASE_CONNECTIONS = 2
"""Of their own: a lease is renewed however many writes wait for a connection."""

logger = logging.getLogger(__name__)
# psycopg tells each failed attempt to connect; unless somebody listens, what matters of it is in our errors.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

Connection = AsyncConnection[DictRow]
_Result = TypeVar("_Result")


class Database:
    """The connections to one database."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.num_users = 0
        self.pool = _make_pool(address, _MAX_CONNECTIONS)
        self._lease_pool = _make_pool(address, _MAX_LEASE_CONNECTIONS)
        self._opening = asyncio.Lock()
        self._outage: psycopg.Error | None = None
        """What a time without the database began with; the errors that follow may only say that nobody answers."""
        self._outage_ends_at = 0.0
        """It is waited out no longer than until then."""
        self._answered_at = time.monotonic()

    async def open(self, *, must_exist: bool) -> None:
        """Connect, and bring the tables up to date; done once, whoever asks.

        Raises:
            CheckpointError: the database cannot be reached or written, or has no tables where it must have some.
        """
        async with self._opening:
            if not self.pool.closed:
                return
            async with connect(self.address) as connection:
                # By a connection of its own: what is wrong is known at once, where a pool would try again and again.
                if must_exist and not await has_runs(connection):
                    raise no_runs(self.address)
                await migrate(connection)
            await self._lease_pool.open()
            await self.pool.open()
            self.note_answer()

    async def close(self) -> None:
        """Close all connections."""
        await self.pool.close()
        await self._lease_pool.close()

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection for as long as the block lasts."""
        if self._outage is None:
            return self.pool.connection(timeout=PATIENCE_S)
        # At least as long as a connection needs.
        left_s = max(_PAUSE_S, self._outage_ends_at - time.monotonic())
        return self.pool.connection(timeout=min(_RECONNECT_S, left_s))

    def lease_connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection that no write of a run keeps busy: for short statements on leases."""
        return self._lease_pool.connection(timeout=2 * _RECONNECT_S)

    def note_answer(self) -> None:
        """Take note that the database is there."""
        self._answered_at = time.monotonic()

    async def attempt(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do a piece of work that may be done twice: again and again while the database is away for a short time.

        Once it was away for too long, each piece of work is tried once: a run that must end ends soon. A database that
        is only busy is no outage, and is waited for as long as the lease can be renewed.

        Raises:
            CheckpointError: the database is away for longer, or refuses.
        """
        task = asyncio.current_task()
        assert task is not None
        num_cancels = task.cancelling()
        while True:
            try:
                result = await work()
            except psycopg.Error as error:
                await self._wait_out(error)
            else:
                self._outage = None
                self.note_answer()
                if task.cancelling() > num_cancels:
                    # Up to Python 3.11, a cancellation is swallowed that comes as the pool hands a connection over.
                    raise asyncio.CancelledError
                return result

    async def _wait_out(self, error: psycopg.Error) -> None:
        """Return when it is time to try again.

        Raises:
            CheckpointError: that would not help, or no longer.
        """
        if not _may_pass(error):
            raise _explain(error, self.address) from error
        if isinstance(error, PoolTimeout) and time.monotonic() - self._answered_at < PATIENCE_S:
            # Others are served: all connections are at work.
            if self._outage is None:
                logger.warning("all connections to the database have been at work for %.0f s", PATIENCE_S)
            return
        if self._outage is None:
            # At once: it may have been this connection alone that broke.
            self._outage, self._outage_ends_at = error, time.monotonic() + PATIENCE_S
            logger.warning("the database is away: %s", self.address.hide(str(error)))
            return
        if time.monotonic() >= self._outage_ends_at:
            raise _explain(self._outage, self.address) from error
        await asyncio.sleep(_PAUSE_S)


def _make_pool(address: Address, max_size: int) -> AsyncConnectionPool[Connection]:
    return AsyncConnectionPool(
        address.conninfo,
        connection_class=AsyncConnection[DictRow],
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        configure=_configure,
        min_size=1,
        max_size=max_size,
        timeout=PATIENCE_S,
        reconnect_timeout=_RECONNECT_S,
        open=False,
    )


_databases: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Database]]" = weakref.WeakKeyDictionary()


@asynccontextmanager
async def share_database(address: Address, *, must_exist: bool) -> AsyncIterator[Database]:
    """Open a database, or use it with those who have it open already; the last one closes it.

    Raises:
        CheckpointError: it cannot be reached or written, or has no tables where it must have some.
    """
    databases = _databases.setdefault(asyncio.get_running_loop(), {})
    database = databases.setdefault(address.conninfo, Database(address))
    database.num_users += 1
    try:
        await database.open(must_exist=must_exist)
        yield database
    finally:
        database.num_users -= 1
        if database.num_users == 0:
            databases.pop(address.conninfo)
            await database.close()


@asynccontextmanager
async def connect(address: Address, *, is_reader: bool = False) -> AsyncIterator[Connection]:
    """Open one connection; a reader's cannot write.

    Raises:
        CheckpointError: the database cannot be reached, or a statement fails.
    """
    with explained(address):
        async with await AsyncConnection.connect(
            address.conninfo, autocommit=True, prepare_threshold=0, row_factory=dict_row
        ) as connection:
            await _configure(connection)
            if is_reader:
                await connection.execute("SET default_transaction_read_only = on")
            yield connection


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Raise what fails of the database with what to do about it."""
    try:
        yield
    except psycopg.Error as error:
        raise _explain(error, address) from error


def no_runs(address: Address) -> NoRunsError:
    """Return the error of a database that holds no runs."""
    return NoRunsError(f"Checkpoint {address.name} holds no runs of drpo. Give another place with --checkpoint.")


def _explain(error: psycopg.Error, address: Address) -> CheckpointError:
    """Return what an error of the database means, with what to do about it."""
    text, state = address.hide(str(error)), error.sqlstate or ""
    if state == "42P01":
        return no_runs(address)
    if state.startswith("XX"):
        return tell_damage(f"Checkpoint {address.name}", cause=text.rstrip("."))
    if state.startswith("28") or "password" in text:
        advice = "Give user and password in the URI, with PGPASSWORD or in ~/.pgpass."
    elif state in ("53100", "53200"):
        advice = "Free space and run `drpo resume`: what was committed is kept."
    elif state in ("42501", "25006"):
        advice = "Give a user who may create and write tables, or another place with --checkpoint."
    else:
        advice = "Check the database, then run `drpo resume`: what was committed is kept."
    return CheckpointError(f"Checkpoint {address.name}: {text.rstrip('.')}. {advice}")


async def _configure(connection: Connection) -> None:
    # A lease is checked after waiting for a lock: the rows must then be seen as they are by now.
    await connection.execute("SET default_transaction_isolation = 'read committed'")


def _may_pass(error: psycopg.Error) -> bool:
    """Return whether trying again may help: the connection broke, the server is restarting, or a conflict ended it."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    state = error.sqlstate
    return state is None or state[:2] in ("08", "40") or state[:3] == "57P" or state == "53300"
