"""Where runs are kept: one SQLite file for the graph's checkpoints and the store with texts, ledger and run list."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
from filelock import FileLock, Timeout
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.store.base import BaseStore
from langgraph.store.sqlite.aio import AsyncSqliteStore

from drpo_graph.errors import CheckpointError, RunLockedError, UsageError

DEFAULT_CHECKPOINT = Path("drpo_runs") / "checkpoints.sqlite"
_BUSY_TIMEOUT_MS = 30_000
_THREAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint."""

    saver: BaseCheckpointSaver[str]
    store: BaseStore


@asynccontextmanager
async def open_checkpoint(path: Path, *, must_exist: bool = False) -> AsyncIterator[Checkpoint]:
    """Open a SQLite checkpoint, creating it unless it must exist.

    WAL with ``synchronous=NORMAL``: a killed process loses nothing that was committed; only a machine that loses power
    may lose the last moments.

    Raises:
        CheckpointError: it cannot be opened, is no checkpoint, or cannot be written.
    """
    if must_exist and not path.is_file():  # noqa: ASYNC240  # One look, before anything runs.
        raise CheckpointError(f"Checkpoint {path} does not exist. Give the file of your runs with --checkpoint.")
    async with AsyncExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint = await _open(path, stack)
        except (sqlite3.Error, OSError) as error:
            raise explain_storage_error(error, path) from error
        try:
            yield checkpoint
        except sqlite3.Error as error:
            raise explain_storage_error(error, path) from error


def explain_storage_error(error: Exception, path: Path) -> CheckpointError:
    """Return what a storage error means, with what to do about it."""
    text = str(error)
    if "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        advice = "It cannot be written: give another place with --checkpoint."
    elif "full" in text or "No space left" in text:
        advice = "The disk is full: free space and run `drpo resume`; what was committed is kept."
    elif "not a database" in text:
        advice = "It is no SQLite file: give another place with --checkpoint."
    elif "locked" in text:
        advice = "Another process kept it locked for too long: try again."
    else:
        advice = "Check the path and the disk, then run `drpo resume`."
    return CheckpointError(f"Checkpoint {path}: {text}. {advice}")


def check_thread_id(thread_id: str) -> str:
    """Return a thread id that is fit to name a folder.

    Raises:
        UsageError: it is not.
    """
    if not _THREAD_ID.fullmatch(thread_id):
        raise UsageError(
            f"Thread id {thread_id!r}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )
    return thread_id


@contextmanager
def lock_thread(path: Path, thread_id: str) -> Iterator[None]:
    """Hold a run for this process; the lock goes with the process, however it ends.

    Raises:
        RunLockedError: another process works on the run.
        CheckpointError: the lock file cannot be written.
    """
    folder = path.with_name(f"{path.name}.locks")
    lock = FileLock(folder / f"{thread_id}.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunLockedError(
            f"Run {thread_id!r} is being worked on by another process. Wait for it, or watch it with "
            f"`drpo events {thread_id} --follow`."
        ) from error
    except OSError as error:
        raise explain_storage_error(error, path) from error
    try:
        yield
    finally:
        lock.release()


async def _open(path: Path, stack: AsyncExitStack) -> Checkpoint:
    # The store runs its own transactions, the saver relies on implicit ones: each has a connection of its kind.
    for_store = await stack.enter_async_context(_connect(path, None))
    for_saver = await stack.enter_async_context(_connect(path, "DEFERRED"))
    saver = AsyncSqliteSaver(for_saver)
    await saver.setup()
    store = AsyncSqliteStore(for_store)
    await store.setup()
    # Fails now, rather than after the first paid call, where the file is read-only.
    await for_store.execute("BEGIN IMMEDIATE")
    await for_store.execute("ROLLBACK")
    return Checkpoint(saver, store)


@asynccontextmanager
async def _connect(path: Path, isolation_level: str | None) -> AsyncIterator[aiosqlite.Connection]:
    async with aiosqlite.connect(path, isolation_level=isolation_level) as connection:
        await connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=NORMAL")
        yield connection
