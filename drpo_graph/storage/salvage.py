"""What can still be read of a damaged SQLite file."""

import sqlite3
from collections.abc import Iterator

_COPIED = "prefix, key, value"
_MAX_GAP = 200_000
"""So many row numbers without a readable row end the search for one: those of a page that is damaged are fewer."""


def find_damage(connection: sqlite3.Connection) -> str:
    """Return what is wrong with a file's pages and indexes, or an empty text: 1 ms per megabyte."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    # It says at first where it has looked, and in the last line what is wrong there.
    return "" if found == "ok" else str(found).splitlines()[-1]


def copy_readable(connection: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Put into the copy's store what can be read of the rows of a store, past its indexes, which may be damaged."""
    for row in _read_rows(connection):
        copy.execute(f"INSERT OR IGNORE INTO store ({_COPIED}) VALUES (?, ?, ?)", row)


def _read_rows(connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    query = f"SELECT rowid, {_COPIED} FROM store NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT 1"
    last = num_skipped = 0
    while num_skipped < _MAX_GAP:
        try:
            found = connection.execute(query, (last,)).fetchone()
        except (sqlite3.DatabaseError, OverflowError):
            last, num_skipped = last + 1, num_skipped + 1
            continue
        if found is None or found[0] <= last:
            return
        last, num_skipped = found[0], 0
        yield found[1:]
