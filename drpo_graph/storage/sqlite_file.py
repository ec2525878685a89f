"""A SQLite file as the place of runs: the graph's checkpoints, and the store with texts, ledger and run list."""

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from filelock import FileLock, Timeout

from drpo_graph.errors import CheckpointError, DamagedError, NoRunsError, ReadOnlyError, RunLockedError, UsageError
from drpo_graph.safety.encryption import Vault, read_vault
from drpo_graph.safety.private_files import FILE_MODE, create_private_file, make_private_folder
from drpo_graph.storage.damage import tell_damage
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.protocols import Checkpoint, EventReader, Reader, Storage
from drpo_graph.storage.salvage import copy_readable, find_damage
from drpo_graph.storage.serializer import make_serializer
from drpo_graph.storage.sqlite_errors import ELSEWHERE, explain_storage_error, log_of

_BUSY_TIMEOUT_MS = 30_000
_LOCK_TIMEOUT_S = 0.5
"""Longer than a look at a lock takes: :func:`is_worked_on` holds it for a moment."""


@dataclass(frozen=True, slots=True)
class SqliteStorage(Storage):
    """Keeps runs in a file; a run is held by a lock file, which goes with the process."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    @property
    def folder(self) -> Path:
        """Where run folders are: beside the file."""
        return self.path.parent

    def exists(self) -> bool:
        """Return whether there is a file."""
        return self.path.exists()

    def require(self) -> None:
        """Do nothing when there is a file.

        Raises:
            CheckpointError: there is none.
        """
        self._refuse_special()
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise CheckpointError(f"Checkpoint {self.path} {what}. Give the file of your runs with --checkpoint.")

    def _refuse_special(self) -> None:
        """Do nothing where there is a file, a folder or nothing: to open a pipe may take for ever."""
        # Not by pathlib, which raises where a folder on the way is closed: that is told by who opens the file.
        if os.path.exists(self.path) and not os.path.isfile(self.path) and not os.path.isdir(self.path):
            raise CheckpointError(f"Checkpoint {self.path} is a device or a pipe, and no file. {ELSEWHERE}")

    @asynccontextmanager
    async def open_run(self, thread_id: str, *, must_exist: bool = False) -> AsyncIterator[Checkpoint]:
        """Lock a run and open its file for work."""
        self._refuse_special()
        if must_exist:
            self.require()
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(lock_thread(self.path, thread_id))
                checkpoint = await stack.enter_async_context(open_checkpoint(self.path, is_checked=must_exist))
            except ReadOnlyError as error:
                if not must_exist:
                    raise
                checkpoint = await stack.enter_async_context(open_read_only(self.path, error))
            yield checkpoint

    @asynccontextmanager
    async def open_for_reading(self, *, lost: list[DamagedError] | None = None) -> AsyncIterator[Reader]:
        """Open the file to look at runs: nothing is written, so a read-only file will do."""
        from drpo_graph.storage.sealed_store import seal_store
        from drpo_graph.storage.sqlite_saver import InlineSqliteStore  # Slow to import: only who looks at runs pays.

        async def is_held(thread_id: str) -> bool:
            return is_worked_on(self.path, thread_id)

        self.require()
        vault = read_vault(os.environ)
        try:
            with ExitStack() as stack:
                connection = connect_for_reading(self.path, stack)
                check = partial(find_damage, connection)
                store = InlineSqliteStore(connection)
                if lost is not None and (found := check()):
                    lost.append(tell_damage(f"Checkpoint {self.path}", cause=found))
                    store = InlineSqliteStore(
                        stack.enter_context(closing(sqlite3.connect(":memory:", isolation_level=None)))
                    )
                    store.setup()
                    copy_readable(connection, store.conn)
                store.setup()
                sealed = await seal_store(store, vault, name=self.name, is_new=False, lost=lost)
                yield Reader(sealed, is_held, check)
        except sqlite3.Error as error:
            raise explain_storage_error(error, self.path) from error

    async def measure(self) -> int:
        """Return the bytes of the file, with its log."""
        parts = (self.path, log_of(self.path))
        return sum(part.stat().st_size for part in parts if part.exists())

    async def reclaim(self) -> None:
        """Rewrite the file without what was deleted."""
        try:
            with closing(_connect(self.path, None)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise explain_storage_error(error, self.path) from error

    @contextmanager
    def open_events(self, thread_id: str, log_dir: str | None, *, held_as: str | None = None) -> Iterator[EventReader]:
        """Open a run's event logs, which are in its folder."""
        from drpo_graph.events.log import open_event_files  # Loads LangGraph.

        if log_dir is None:
            raise CheckpointError(f"Run {thread_id!r} keeps no event log: it was started with --disable-log.")
        is_written = partial(is_worked_on, self.path, held_as or thread_id)
        with open_event_files(Path(log_dir), thread_id, is_written) as events:
            yield events


@asynccontextmanager
async def open_checkpoint(path: Path, *, is_checked: bool = False) -> AsyncIterator[Checkpoint]:
    """Open a SQLite checkpoint, creating it where there is none; a damaged one is refused where it is to be checked.

    WAL with ``synchronous=NORMAL``: a killed process loses nothing that was committed; only a machine that loses power
    may lose the last moments.

    Raises:
        CheckpointError: it cannot be opened, is no checkpoint, or cannot be written.
    """
    vault = read_vault(os.environ)
    with ExitStack() as stack:
        try:
            make_private_folder(path.parent)
            create_private_file(path)
            checkpoint = await _open(path, stack, vault, is_checked=is_checked)
        except (sqlite3.Error, OSError) as error:
            raise explain_storage_error(error, path) from error
        try:
            yield checkpoint
        except sqlite3.Error as error:
            raise explain_storage_error(error, path) from error


@asynccontextmanager
async def open_read_only(path: Path, why: ReadOnlyError) -> AsyncIterator[Checkpoint]:
    """Open a SQLite checkpoint that cannot be written, to look at a finished run.

    Raises:
        CheckpointError: it cannot be read either.
    """
    from drpo_graph.storage.sealed_store import seal_store
    from drpo_graph.storage.sqlite_saver import InlineSqliteSaver, InlineSqliteStore

    vault = read_vault(os.environ)
    try:
        with ExitStack() as stack:
            connection = connect_for_reading(path, stack)
            if found := find_damage(connection):
                raise tell_damage(f"Checkpoint {path}", cause=found)
            saver = InlineSqliteSaver(connection, serde=make_serializer(vault))
            store = InlineSqliteStore(connection)
            # What there is to set up would be written.
            saver.is_setup = store.is_setup = True
            sealed = await seal_store(store, vault, name=str(path), is_new=False)
            explain = partial(explain_storage_error, path=path)
            yield Checkpoint(saver, sealed, explain, vault=vault, read_only=why)
    except sqlite3.Error as error:
        raise explain_storage_error(error, path) from error


@contextmanager
def lock_thread(path: Path, thread_id: str) -> Iterator[None]:
    """Hold a run for this process; the lock goes with the process, however it ends.

    Raises:
        RunLockedError: another process works on the run.
        CheckpointError: the lock file cannot be written.
    """
    lock_file = _lock_file(path, thread_id)
    try:
        make_private_folder(lock_file.parent)
        lock = FileLock(lock_file, mode=FILE_MODE).acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout as error:
        raise RunLockedError(
            f"Run {thread_id!r} is being worked on by another process. Wait for it, or watch it with "
            f"`drpo events {thread_id} --follow`."
        ) from error
    except OSError as error:
        raise explain_storage_error(error, path) from error
    with lock:
        yield


def is_worked_on(path: Path, thread_id: str) -> bool:
    """Return whether a process works on the run at this moment."""
    try:
        lock_file = _lock_file(path, thread_id)
    except UsageError:
        # No process of ours takes up a run of such a name, which a foreign checkpoint may hold.
        return False
    if not lock_file.exists():
        return False
    try:
        with FileLock(lock_file, timeout=0, mode=FILE_MODE):
            return False
    except Timeout:
        return True
    except OSError:
        # Nobody works on a run that cannot be written.
        return False


def _lock_file(path: Path, thread_id: str) -> Path:
    # Locking a file empties it: a name must not lead out of the folder.
    return path.with_name(f"{path.name}.locks") / f"{check_thread_id(thread_id)}.lock"


def connect_for_reading(path: Path, stack: ExitStack) -> sqlite3.Connection:
    """Return a connection that cannot write.

    Raises:
        CheckpointError: the file holds no runs.
    """
    # SQLite reads a WAL database only where it may put its log beside it, or where it is told that nobody writes.
    # Opened for writing, it takes its log away again; opened so that it cannot write, it leaves it.
    try:
        return _try_to_read(path, "mode=rw", stack)
    except sqlite3.OperationalError as error:
        if "unable to open" not in str(error):
            raise
    log = log_of(path)
    if not log.exists() or log.stat().st_size == 0:
        return _try_to_read(path, "immutable=1", stack)
    # What a killed process committed last is only in its log, which is not read where nothing can be made beside it.
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="drpo-")))
    try:
        for part in (path, log):
            shutil.copyfile(part, folder / part.name)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {path}: its folder cannot be written, and what its log {log.name} holds cannot be copied to "
            f"{folder.parent} to be read ({error.strerror}). Copy both files to another place."
        ) from error
    return _try_to_read(folder / path.name, "mode=rw", stack)


def _try_to_read(path: Path, way: str, stack: ExitStack) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?{way}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    stack.callback(connection.close)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA query_only=ON")
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    tables = _list_tables(connection)
    if tables >= {"store", "checkpoints"}:
        return connection
    if "store" in tables and connection.execute("SELECT 1 FROM store WHERE prefix LIKE 'drpo.%'").fetchone():
        raise tell_damage(f"Checkpoint {path}", cause="its table checkpoints is not there")
    raise NoRunsError(f"Checkpoint {path} holds no runs of drpo. {ELSEWHERE}")


async def _open(path: Path, stack: ExitStack, vault: Vault | None, *, is_checked: bool) -> Checkpoint:
    from drpo_graph.storage.sealed_store import seal_store
    from drpo_graph.storage.sqlite_saver import InlineSqliteSaver, InlineSqliteStore  # Slow: only a run pays for it.

    # The store runs its own transactions, the saver relies on implicit ones: each has a connection of its kind.
    for_store = stack.enter_context(closing(_connect(path, None)))
    for_saver = stack.enter_context(closing(_connect(path, "DEFERRED")))
    if is_checked and (found := find_damage(for_store)):
        raise tell_damage(f"Checkpoint {path}", cause=found)
    saver, store = InlineSqliteSaver(for_saver, serde=make_serializer(vault)), InlineSqliteStore(for_store)
    saver.setup()
    store.setup()
    # Changes nothing, and where the file is read-only it fails now rather than after the first paid call.
    for_store.execute("DELETE FROM store_migrations WHERE v < 0")
    sealed = await seal_store(store, vault, name=str(path), is_new=True)
    return Checkpoint(saver, sealed, partial(explain_storage_error, path=path), vault=vault)


def _connect(path: Path, isolation_level: Literal["DEFERRED"] | None) -> sqlite3.Connection:
    # LangGraph may look at its saver from a worker thread; the saver and the store have locks of their own.
    connection = sqlite3.connect(path, isolation_level=isolation_level, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    _list_tables(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _list_tables(connection: sqlite3.Connection) -> set[str]:
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except UnicodeDecodeError as error:
        # Python cannot read what SQLite says: the statements in it are no text.
        raise sqlite3.DatabaseError("malformed database schema") from error
