"""The server's API key: made for one start and kept in a file of our own, or the user's own."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drpo_graph.errors import ServeError, UsageError
from drpo_graph.safety.api_keys import find_unsendable
from drpo_graph.safety.private_files import make_private_folder
from drpo_graph.safety.text_files import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKey:
    """A key, and where it comes from."""

    value: str = field(repr=False)
    file: Path | None = None
    variable: str | None = None


@contextmanager
def new_key(file: Path) -> Iterator[ServerKey]:
    """Make a key in a new file that this user alone can read, and remove it in the end.

    Raises:
        ServeError: the file cannot be written.
    """
    value = secrets.token_urlsafe(32)
    try:
        make_private_folder(file.parent)
        # The mode from the start: a file made readable and closed afterwards has been open for a moment.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(f"{value}\n")
    except OSError as error:
        raise ServeError(f"Key file {file}: {error.strerror}. Give another place with --log-file.") from error
    try:
        yield ServerKey(value=value, file=file)
    finally:
        file.unlink(missing_ok=True)


def borrow_key(*, variable: str | None, file: Path | None, environment: Mapping[str, str]) -> ServerKey | None:
    """Return the key that the user names, or ``None`` when none is named.

    Raises:
        UsageError: two are named, there is none where one is named, or it cannot stand in a request.
    """
    if variable is not None and file is not None:
        raise UsageError("--api-key-env and --api-key-file: give one of them.")
    if variable is not None:
        value = environment.get(variable, "").strip()
        _check(value, f"--api-key-env: environment variable {variable}")
        return ServerKey(value=value, variable=variable)
    if file is None:
        return None
    try:
        value = read_text(file).strip()
    except OSError as error:
        raise UsageError(f"--api-key-file {file}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"--api-key-file {file}: it is not text.") from error
    _check(value, f"--api-key-file {file}")
    return ServerKey(value=value, file=file)


def _check(value: str, where: str) -> None:
    if not value:
        raise UsageError(f"{where}: there is no key. Without it, a new key is made.")
    if wrong := find_unsendable(value):
        raise UsageError(f"{where}: expected one word of ASCII letters, digits and signs; it holds {wrong}.")
