"""The event logs in a run's folder, written and read: a plain one, a sealed one, or both in the order of time.

A run may leave both: it was begun with an encrypted checkpoint, and resumed with ``--plain-files``.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from heapq import merge
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic_core import PydanticSerializationError

from drpo_graph.errors import CheckpointError
from drpo_graph.events.schema import Event
from drpo_graph.safety.encryption import Vault, read_vault
from drpo_graph.safety.limits import FULL, Limit, limit_of
from drpo_graph.safety.private_files import open_to_append, open_to_read
from drpo_graph.safety.terminal import inert_json

EVENTS_FILE = "events.jsonl"
SEALED_EVENTS_FILE = "events.jsonl.sealed"
_FORGED = "?"
"""Before a plain line in a sealed log: it was put there by somebody without the key, and shall not open."""


class StoredLine(NamedTuple):
    """A line of a run's log."""

    text: str
    position: int = 0
    """The event's number, where the place knows it without opening the line; else 0."""


@dataclass(frozen=True, slots=True)
class FileEvents:
    """A run's event logs."""

    thread_id: str
    plain: TextIO | None
    sealed: TextIO | None
    vault: Vault | None
    is_written: Callable[[], bool]
    """Returns whether a process works on the run."""

    def open_line(self, line: str) -> str:
        """Return a line as JSON; one of a sealed log, opened."""
        if self.sealed is None or line.startswith("{"):
            return line
        return open_event_line(line, self.vault, thread_id=self.thread_id)

    def read(self, since: int = 0) -> Iterator[StoredLine]:
        """Yield the complete lines that are not read yet; which of them are known is seen when they are opened."""
        plain = _read_lines(self.plain)
        sealed = (f"{_FORGED}{line}" if line.startswith("{") else line for line in _read_lines(self.sealed))
        lines: Iterable[str] = chain(plain, sealed)
        if self.plain is not None and self.sealed is not None:
            lines = (line for _, line in merge(self._time(sealed), self._time(plain), key=itemgetter(0)))
        return map(StoredLine, lines)

    def _time(self, lines: Iterable[str]) -> Iterator[tuple[float, str]]:
        """Yield each line with its time; one that tells none stays behind the one before it."""
        last = 0.0
        for line in lines:
            with suppress(CheckpointError, ValueError, LookupError, TypeError):
                last = max(last, float(json.loads(self.open_line(line))["time"]))
            yield last, line


@contextmanager
def open_event_files(folder: Path, thread_id: str, is_written: Callable[[], bool]) -> Iterator[FileEvents]:
    """Open the event logs in a run's folder.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    plain, sealed = folder / EVENTS_FILE, folder / SEALED_EVENTS_FILE
    has_sealed = sealed.exists()
    has_plain = plain.exists() or not has_sealed
    with ExitStack() as stack:

        def open_log(path: Path) -> TextIO:
            try:
                file = open(open_to_read(path), encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115
                return stack.enter_context(file)
            except OSError as error:
                raise CheckpointError(f"Event log {path}: {error.strerror}.") from error

        yield FileEvents(
            thread_id,
            open_log(plain) if has_plain else None,
            open_log(sealed) if has_sealed else None,
            read_vault(os.environ) if has_sealed else None,
            is_written,
        )


def _read_lines(file: TextIO | None) -> Iterator[str]:
    while file is not None:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            # Half a line: its other half is still to come.
            file.seek(place)
            return
        yield line


def find_last_number(folder: Path, thread_id: str) -> int:
    """Return the number of the last event in a run's folder, 0 where there is none.

    Raises:
        CheckpointError: a log cannot be read.
    """
    if not any((folder / name).exists() for name in (EVENTS_FILE, SEALED_EVENTS_FILE)):
        return 0
    last = 0
    with open_event_files(folder, thread_id, lambda: False) as events:
        for line in events.read():
            with suppress(CheckpointError, ValueError, LookupError, TypeError):
                last = number_after(last, int(json.loads(events.open_line(line.text))["seq"]), line)
    return last


def number_after(last: int, seq: int, line: StoredLine) -> int:
    """Return the number of the event in a line: its own, unless an earlier version began anew in each process."""
    return max(last + 1, seq, line.position)


class EventLog:
    """Appends each event to a file as it happens: what was written survives a killed process.

    One line each, sealed if there is a vault.
    """

    def __init__(self, path: Path, vault: Vault | None = None) -> None:
        self._vault = vault
        # Without a buffer: what cannot be written is not kept for later, to fail once more when the file is closed.
        self._file = open(open_to_append(path), "ab", buffering=0)  # noqa: SIM115  # Closed by close().
        self._path = path
        _end_last_line(self._file.fileno())

    def __call__(self, event: Event) -> None:
        """Append one event.

        Raises:
            CheckpointError: it cannot be written.
        """
        line = memoryview(event_line(event, self._vault))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            what, advice = limit_of(error) or Limit(error.strerror or str(error), FULL.advice)
            raise CheckpointError(f"Event log {self._path}: {what}. {advice}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_event_line(line: str, vault: Vault | None, *, thread_id: str) -> str:
    """Return a line of a run's event log as JSON; those of a sealed one need its vault.

    Raises:
        CheckpointError: it does not open.
    """
    if vault is None:
        return line
    return vault.open(line.strip(), place=_events_place(thread_id)).decode("utf-8", "replace")


def _end_last_line(descriptor: int) -> None:
    """Close a line that a killed process left open, so that the next event begins one of its own."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def event_line(event: Event, vault: Vault | None = None) -> bytes:
    """Return an event as a line of the event log, sealed if there is a vault."""
    try:
        line = f"{inert_json(event.model_dump_json())}\n".encode()
    except PydanticSerializationError:
        # A lone surrogate in a model's reply, which UTF-8 cannot hold: an escape says the same.
        line = f"{json.dumps(event.model_dump(), separators=(',', ':'))}\n".encode()
    return line if vault is None else f"{vault.seal(line, place=_events_place(event.run_id))}\n".encode()


def _events_place(thread_id: str) -> str:
    return f"events/{thread_id}"
