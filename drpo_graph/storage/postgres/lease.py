"""One worker per run: a row with an end, renewed while the worker lives, and checked by the database in every write."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg

from drpo_graph.errors import LeaseLostError, RunLockedError
from drpo_graph.stop import StopSignal
from drpo_graph.storage.postgres.database import Connection, Database
from drpo_graph.storage.postgres.process import Holding, find_holding, identify
from drpo_graph.storage.postgres.schema import LEASE_LOST, fetch_value, held_by

LEASE_S = 30.0
"""How long a run is held after a renewal."""
_RENEWALS = 6
"""Per lease: so many may fail in a row before it ends."""
_RETRY_S = 1.0
"""A renewal that failed is tried again after it, or sooner."""
_PAUSE_S = 0.05
_WAIT_S = 2.0
"""How long a write of the former holder may take to end by itself."""
# A clock that goes on while the machine sleeps, as the database's does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
logger = logging.getLogger(__name__)

_KEY = "hashtextextended('drpo_graph/runs/' || %(run)s, 0)"


class Lease:
    """This process's hold on a run."""

    def __init__(self, database: Database, thread_id: str, *, lease_s: float) -> None:
        self.thread_id = thread_id
        self._database = database
        self._lease_s = lease_s
        self._holder = secrets.token_hex(16)
        self._ends_at = 0.0
        self._error: LeaseLostError | None = None
        self._trouble = ""
        """What the last renewal failed of."""
        self._is_over = False
        self._task: asyncio.Task[object] | None = None
        self._has_cancelled = False
        self._stops: list[StopSignal] = []

    @asynccontextmanager
    async def held(self) -> AsyncIterator["Lease"]:
        """Hold the run for as long as the block lasts; where the lease is lost before, the block is cancelled.

        Raises:
            RunLockedError: another process works on the run.
            LeaseLostError: this one lost it.
            CheckpointError: the database is away.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task, num_cancels = task, task.cancelling()
        await self._database.attempt(self._acquire)
        # Two tasks: a renewal may hang in a dead network, and the end of the lease must be noticed in time.
        tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch())]
        try:
            yield self
            if self.is_lost:
                raise asyncio.CancelledError
        except BaseException as error:
            if self._error is None:
                raise
            num_left = task.uncancel() if self._has_cancelled else task.cancelling()
            if isinstance(error, asyncio.CancelledError) and num_left > num_cancels:
                # Somebody else has cancelled it besides.
                raise
            raise self._error from error
        finally:
            # First: what happens to the lease from here on is no longer the caller's.
            self._task, self._is_over = None, True
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks, timeout=_WAIT_S)
            if self._error is None:
                # Where the database is away, the lease ends by itself.
                with suppress(psycopg.Error, TimeoutError):
                    async with asyncio.timeout(_WAIT_S):
                        await self._release()

    @property
    def is_lost(self) -> bool:
        """Whether the run may be another's by now: nothing may be begun or written any more."""
        if self._is_over:
            return True
        if self._error is None and _now() >= self._ends_at:
            self._lose(f"its lease on the run could not be renewed in time{self._trouble}")
        return self._error is not None

    def guard(self, stop: StopSignal) -> None:
        """Let no call of these runs begin once the lease is lost."""
        self._stops.append(stop)
        stop.add_guard(lambda: self.is_lost)

    async def check(self, connection: Connection) -> None:
        """Make the statements that follow in the same transaction fail unless the lease holds until their commit."""
        # A cursor of its own: in a pipeline, its result must not come before those of the caller's.
        await connection.execute("SELECT drpo_check_lease(%s, %s)", (self.thread_id, self._holder))

    def note(self, error: psycopg.Error) -> None:
        """Take note of a write that failed.

        Raises:
            LeaseLostError: the lease is lost, which may be why; then nothing is told, not even the log.
        """
        if error.sqlstate == LEASE_LOST:
            self._lose("its lease on the run has ended or was taken over")
        if self.is_lost and self._error is not None:
            raise self._error from error

    def _lose(self, reason: str) -> None:
        if self._error is not None or self._is_over:
            return
        self._error = LeaseLostError(
            f"Run {self.thread_id!r}: this process has stopped, because {reason}. What was committed is kept: see "
            f"`drpo runs`, and `drpo resume {self.thread_id}` unless another process goes on with it."
        )
        for stop in self._stops:
            stop.request("The lease on the run is lost.", self._error)
        # The task that holds the lease gets the error itself where it is the one that noticed.
        if self._task is not None and self._task is not _current_task():
            self._has_cancelled = self._task.cancel()

    async def _acquire(self) -> None:
        former = await self._find_former()
        asked_at = _now()
        async with self._database.connection() as connection, connection.transaction():
            await self._shut_out_former(connection)
            if not await self._take(connection, former):
                # Somebody else was quicker.
                raise self._locked(None)
        self._ends_at = asked_at + self._lease_s

    async def _find_former(self) -> Holding | None:
        """Return the lease to replace, or ``None`` when there is none.

        Raises:
            RunLockedError: it holds.
        """
        found = await self._find()
        if found is not None and found.is_too_long and found.is_live:
            found = await self._see_renewed(found)
        # One's own is found where the connection broke just after it was taken.
        if found is not None and found.is_live and found.holder != self._holder:
            raise self._locked(found)
        return found

    async def _find(self) -> Holding | None:
        async with self._database.connection() as connection:
            return await find_holding(connection, self.thread_id)

    async def _see_renewed(self, found: Holding) -> Holding | None:
        """Return the lease when it was renewed, by the database's new clock, or as ended when its length went by.

        Should its holder live after all, the database refuses what it writes from the takeover on.
        """
        logger.warning(
            "run %s: the database's clock was set back; waiting up to %.0f s for its worker to renew its lease",
            self.thread_id,
            found.length_s,
        )
        given_up_at = time.monotonic() + found.length_s
        while time.monotonic() < given_up_at:
            await asyncio.sleep(min(_RETRY_S, found.length_s / _RENEWALS))
            now = await self._find()
            if now is None or (now.holder, now.expires_at) != (found.holder, found.expires_at):
                return now
        return found._replace(left_s=0.0)

    async def _shut_out_former(self, connection: Connection) -> None:
        """Wait for a write of the former holder that has begun; one that does not end has its connection closed.

        Raises:
            RunLockedError: it cannot be closed.
        """
        run = {"run": self.thread_id}
        for is_last in (False, True):
            give_up_at = time.monotonic() + _WAIT_S
            while time.monotonic() < give_up_at:
                if await fetch_value(connection, f"SELECT pg_try_advisory_xact_lock({_KEY}) AS value", run):
                    return
                await asyncio.sleep(_PAUSE_S)
            if not is_last:
                close = f"SELECT pg_terminate_backend(pid) FROM ({held_by(_KEY)}) AS held WHERE pid <> pg_backend_pid()"
                await connection.execute(close.encode(), run)
        raise self._locked(None)

    async def _take(self, connection: Connection, found: Holding | None) -> bool:
        """Take the lease, unless it is no longer as it was found."""
        taken = await connection.execute(
            """
            INSERT INTO drpo_leases AS held (thread_id, holder, host, pid, process, length_s, expires_at)
            VALUES (%(run)s, %(holder)s, %(host)s, %(pid)s, %(process)s, %(lease_s)s,
                    clock_timestamp() + make_interval(secs => %(lease_s)s))
            ON CONFLICT (thread_id) DO UPDATE
            SET holder = excluded.holder, host = excluded.host, pid = excluded.pid, process = excluded.process,
                length_s = excluded.length_s, expires_at = excluded.expires_at
            WHERE (held.holder, held.expires_at) = (%(former)s, %(expired_at)s)
            """,
            {
                "run": self.thread_id,
                "holder": self._holder,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process": identify(os.getpid()),
                "lease_s": self._lease_s,
                "former": found.holder if found else None,
                "expired_at": found.expires_at if found else None,
            },
        )
        return taken.rowcount > 0

    async def _watch(self) -> None:
        """Wait for the end of the lease."""
        # The end moves with each renewal, so it is looked at again.
        while not self.is_lost:  # noqa: ASYNC110
            await asyncio.sleep(max(_PAUSE_S, self._ends_at - _now()))

    async def _renew(self) -> None:
        """Renew the lease again and again, until it is lost."""
        pause_s = self._lease_s / _RENEWALS
        while not self.is_lost:
            await asyncio.sleep(pause_s)
            asked_at = _now()
            # One that hangs leaves time for others, on other connections.
            patience_s = max(0.0, min(self._lease_s / 3, self._ends_at - asked_at))
            try:
                async with asyncio.timeout(patience_s):
                    if not await self._extend():
                        self._lose("its lease on the run has ended or was taken over")
            except (psycopg.Error, TimeoutError) as error:
                self._trouble = f" ({self._database.address.hide(str(error)) or 'the database did not answer'})"
                pause_s = min(_RETRY_S, self._lease_s / _RENEWALS)
            else:
                self._database.note_answer()
                self._ends_at = asked_at + self._lease_s
                pause_s = self._lease_s / _RENEWALS

    async def _extend(self) -> bool:
        async with self._database.lease_connection() as connection:
            extended = await connection.execute(
                """
                UPDATE drpo_leases SET expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
                WHERE thread_id = %(run)s AND holder = %(holder)s AND expires_at > clock_timestamp()
                """,
                {"run": self.thread_id, "holder": self._holder, "lease_s": self._lease_s},
            )
            return extended.rowcount > 0

    async def _release(self) -> None:
        async with self._database.lease_connection() as connection:
            await connection.execute(
                "DELETE FROM drpo_leases WHERE thread_id = %s AND holder = %s", (self.thread_id, self._holder)
            )

    def _locked(self, found: Holding | None) -> RunLockedError:
        by = f"process {found.pid} on {found.host}" if found is not None else "another process"
        wait = f" (if that is gone, the run is free in {found.left_s:.0f} s)" if found is not None else ""
        return RunLockedError(
            f"Run {self.thread_id!r} is being worked on by {by}{wait}. Wait for it, or watch it with "
            f"`drpo events {self.thread_id} --follow`."
        )


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # Called back by the loop, not by a task.
        return None
