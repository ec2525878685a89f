"""What an error of SQLite means, with what to do about it."""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from drpo_graph.errors import CheckpointError, ReadOnlyError
from drpo_graph.safety.limits import FULL, Limit, find_limit, limit_of
from drpo_graph.storage.damage import tell_damage

ELSEWHERE = "Give another place with --checkpoint."


def log_of(path: Path) -> Path:
    """Return where SQLite keeps what is committed and not in the file yet."""
    return path.with_name(f"{path.name}-wal")


def explain_storage_error(error: Exception, path: Path) -> CheckpointError:
    """Return what a storage error means, with what to do about it."""
    causes = _causes(error)
    everything = " ".join(map(str, causes))
    names = " ".join(getattr(one, "sqlite_errorname", "") for one in causes)
    if path.is_dir():
        text, advice = "it is a folder", "Give a file with --checkpoint."
    elif "SQLITE_CORRUPT" in names or "decode to UTF-8" in everything:
        return tell_damage(f"Checkpoint {path}", cause=str(causes[0]))
    elif limit := _find_limit(causes, names, path):
        text, advice = limit
    elif "readonly" in everything or "Read-only" in everything or isinstance(error, PermissionError):
        return ReadOnlyError(f"Checkpoint {path}: it cannot be written. {ELSEWHERE}")
    elif "not a database" in everything:
        text, advice = "it is no SQLite file, or its beginning is damaged", ELSEWHERE
    elif "unable to open" in everything and path.is_file() and not os.access(path, os.R_OK):
        text, advice = "it cannot be read", ELSEWHERE
    elif "unable to open" in everything and path.is_file():
        # SQLite makes files beside it.
        return ReadOnlyError(f"Checkpoint {path}: it, or its folder, cannot be written. {ELSEWHERE}")
    elif "unable to open" in everything or isinstance(error, NotADirectoryError | FileExistsError | FileNotFoundError):
        text, advice = "a part of its path is no folder, or cannot be written", ELSEWHERE
    elif "locked" in everything:
        text, advice = str(causes[0]), "Another process kept it locked for too long: try again."
    else:
        text, advice = (
            f"{causes[0]} {names}".strip(),
            "Check the path and the disk, then run the command again, or, where the run had begun, `drpo resume`.",
        )
    return CheckpointError(f"Checkpoint {path}: {text}. {advice}")


def _find_limit(causes: Sequence[BaseException], names: str, path: Path) -> Limit | None:
    """Return the limit of the operating system that an error came from, if it did."""
    if "SQLITE_FULL" in names or any("disk is full" in str(one) for one in causes):
        return FULL
    for one in causes:
        if limit := limit_of(one):
            return limit
    # SQLite keeps no number of what the system said.
    return find_limit(path, log_of(path)) if "SQLITE_IOERR" in names or "SQLITE_CANTOPEN" in names else None


def _causes(error: BaseException) -> list[BaseException]:
    """Return the first error of a chain, then the later ones: a failed rollback hides why it was needed."""
    chain = [error]
    while (earlier := chain[0].__cause__ or chain[0].__context__) is not None and len(chain) < 10:
        chain.insert(0, earlier)
    return [one for one in chain if isinstance(one, sqlite3.Error | OSError)] or [error]
