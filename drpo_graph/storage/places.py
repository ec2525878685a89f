"""Which place a text names: a file, or a database."""

import re
from pathlib import Path

from drpo_graph.errors import UsageError
from drpo_graph.safety.installing import tell_install
from drpo_graph.storage.protocols import RUNS_FOLDER, Storage
from drpo_graph.storage.sqlite_file import SqliteStorage

_SCHEMES = ("postgresql:", "postgres:")

DEFAULT_CHECKPOINT = RUNS_FOLDER / "checkpoints.sqlite"

_CONNECTION_STRING = re.compile(
    r"(.*\s)?(host|hostaddr|port|dbname|user|password|passfile|service|sslmode|options)\s*=", re.DOTALL
)
"""What names a database with keywords; a file would be made of it."""


def _open_database(uri: str) -> Storage:
    try:
        from drpo_graph.storage.postgres import PostgresStorage  # Optional, and slow to import.
    except ImportError as error:
        raise UsageError(
            f"--checkpoint: a PostgreSQL database needs the extra postgres ({error.name} is missing): "
            f"{tell_install('postgres')}."
        ) from error
    return PostgresStorage(uri)


def find_storage(place: str | Path | Storage) -> Storage:
    """Return the place of runs that ``--checkpoint`` names: a file, or a database by its URI.

    Raises:
        UsageError: it is a URI that cannot be used, or the extra ``postgres`` is not installed.
    """
    if isinstance(place, Storage):
        return place
    if not isinstance(place, str | Path):
        raise UsageError(
            "checkpoint: expected the path of a SQLite file or the URI of a PostgreSQL database, got a "
            f"{type(place).__name__}."
        )
    if isinstance(place, str) and place.startswith(_SCHEMES):
        return _open_database(place)
    # None of these is repeated: it may hold a password.
    if str(place).startswith(_SCHEMES) and ":/" in str(place):
        raise UsageError("--checkpoint: a database is named by its URI as a text, not as a path.")
    if _CONNECTION_STRING.match(str(place)) or (isinstance(place, str) and "://" in place):
        raise UsageError("--checkpoint: expected the path of a SQLite file, or a URI that begins with postgresql://.")
    return SqliteStorage(Path(place))
