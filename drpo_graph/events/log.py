"""The event logs in a run's folder, open to be read: a plain one, a sealed one, or both in the order of time.

A run may leave both: it was begun with an encrypted checkpoint, and resumed with ``--plain-files``.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import TextIO

from drpo_graph.errors import CheckpointError
from drpo_graph.runs.files import EVENTS_FILE, SEALED_EVENTS_FILE, open_event_line
from drpo_graph.safety.encryption import Vault, read_vault

_FORGED = "?"
"""Before a plain line in a sealed log: it was put there by somebody without the key, and shall not open."""


@dataclass(frozen=True, slots=True)
class FileEvents:
    """A run's event logs."""

    thread_id: str
    plain: TextIO | None
    sealed: TextIO | None
    vault: Vault | None
    is_worked_on: Callable[[], bool]

    def open_line(self, line: str) -> str:
        """Return a line as JSON; one of a sealed log, opened."""
        if self.sealed is None or line.startswith("{"):
            return line
        return open_event_line(line, self.vault, thread_id=self.thread_id)

    def read(self) -> list[str]:
        """Return the complete lines that are not read yet."""
        plain = [] if self.plain is None else _read_lines(self.plain)
        sealed = [] if self.sealed is None else _read_lines(self.sealed)
        sealed = [f"{_FORGED}{line}" if line.startswith("{") else line for line in sealed]
        if not plain or not sealed:
            return plain + sealed
        return [line for _, line in merge(self._time(sealed), self._time(plain), key=itemgetter(0))]

    def is_written(self) -> bool:
        """Return whether a process works on the run."""
        return self.is_worked_on()

    def _time(self, lines: Iterable[str]) -> Iterator[tuple[float, str]]:
        """Yield each line with its time; one that tells none stays behind the one before it."""
        last = 0.0
        for line in lines:
            with suppress(CheckpointError, ValueError, LookupError, TypeError):
                last = max(last, float(json.loads(self.open_line(line))["time"]))
            yield last, line


@contextmanager
def open_event_files(folder: Path, thread_id: str, is_worked_on: Callable[[], bool]) -> Iterator[FileEvents]:
    """Open the event logs in a run's folder.

    Args:
        folder: The run folder.
        thread_id: The run.
        is_worked_on: Tells whether a process works on the run.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    plain, sealed = folder / EVENTS_FILE, folder / SEALED_EVENTS_FILE
    has_sealed = sealed.exists()
    has_plain = plain.exists() or not has_sealed
    with ExitStack() as stack:
        opened: list[TextIO | None] = []
        for path, is_there in ((plain, has_plain), (sealed, has_sealed)):
            try:
                file = path.open(encoding="utf-8", errors="replace", newline="\n") if is_there else None
            except OSError as error:
                raise CheckpointError(f"Event log {path}: {error.strerror}.") from error
            opened.append(None if file is None else stack.enter_context(file))
        vault = read_vault(os.environ) if has_sealed else None
        yield FileEvents(thread_id, opened[0], opened[1], vault, is_worked_on)


def _read_lines(file: TextIO) -> list[str]:
    lines: list[str] = []
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            # Half a line: its other half is still to come.
            file.seek(place)
            return lines
        lines.append(line)
