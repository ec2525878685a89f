"""Where runs are kept: what a place must be able to do."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from drpo_graph.errors import CheckpointError, DamagedError
from drpo_graph.safety.encryption import Vault

if TYPE_CHECKING:  # Slow to import: a command that is told wrong should hear of it at once.
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.store.base import BaseStore

    from drpo_graph.events.emitter import EventSink
    from drpo_graph.events.log import StoredLine
    from drpo_graph.events.schema import Event
    from drpo_graph.stop import StopSignal

RUNS_FOLDER = Path("drpo_runs")


class Hold(Protocol):
    """A process's hold on a run."""

    @property
    def is_lost(self) -> bool:
        """Whether the run may be another's by now."""

    def guard(self, stop: "StopSignal") -> None:
        """Let no call begin once the hold is lost."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place that is open for work on one run, which is held by this process."""

    saver: "BaseCheckpointSaver[str]"
    store: "BaseStore"
    explain: Callable[[Exception], CheckpointError]
    """Returns what an error of the operating system means for the place, with what to do about it."""
    hold: Hold | None = None
    """``None`` where it goes with the process and cannot be lost before."""
    sinks: "tuple[EventSink, ...]" = ()
    """Where the place itself keeps events."""
    last_seq: int | None = None
    """Number of the last event that the place itself keeps of the run; ``None`` where it keeps none of any."""
    vault: Vault | None = None
    """Seals what else is written about its runs."""
    read_only: CheckpointError | None = None
    """Why nothing can be written, where that is so: it is for looking at a finished run."""

    @property
    def is_lost(self) -> bool:
        """Whether the run may be another's by now: nothing may be written any more."""
        return self.hold is not None and self.hold.is_lost

    def guard(self, stop: "StopSignal", sinks: "tuple[EventSink, ...]") -> "tuple[EventSink, ...]":
        """Tie a run to its hold: return its sinks and the place's own, which hear nothing once the hold is lost."""
        if self.hold is None:
            return (*sinks, *self.sinks)
        self.hold.guard(stop)

        def tell(event: "Event") -> None:
            for sink in (*sinks, *self.sinks):
                if not self.is_lost:
                    sink(event)

        return (tell,)


@dataclass(frozen=True, slots=True)
class Reader:
    """A place that is open for reading."""

    store: "BaseStore"
    """Its records."""
    is_worked_on: Callable[[str], Awaitable[bool]]
    """Returns whether a process works on a run at this moment."""
    find_damage: Callable[[], str] = str
    """Returns what is wrong with the place as a whole, or an empty text; records are checked as they are read."""


class EventReader(Protocol):
    """A run's stored events."""

    def read(self, since: int = 0) -> "Iterator[StoredLine]":
        """Yield the complete lines that are not read yet; those up to a number may be left out."""

    def open_line(self, line: str) -> str:
        """Return a line as JSON; of sealed events, opened.

        Raises:
            CheckpointError: it does not open.
        """

    def is_written(self) -> bool:
        """Return whether a process works on the run, so that more events may come."""


@runtime_checkable
class Storage(Protocol):
    """A place that keeps runs: checkpoints, texts, calls, the run list, and who works on what."""

    @property
    def name(self) -> str:
        """As messages tell it and a command takes it; never with a password."""

    @property
    def folder(self) -> Path:
        """Where run folders stand unless a run is given one."""
        return RUNS_FOLDER

    def exists(self) -> bool:
        """Return whether there may be runs."""
        return True

    def require(self) -> None:
        """Do nothing unless it is known at once that there are no runs.

        Raises:
            CheckpointError: there is nothing.
        """

    def open_run(self, thread_id: str, *, must_exist: bool = False) -> AbstractAsyncContextManager[Checkpoint]:
        """Hold a run for this process and open its place for work, creating what is missing unless it must exist.

        One that must exist and can only be read is opened all the same, as :attr:`Checkpoint.read_only`.

        Raises:
            RunLockedError: another process works on the run.
            LeaseLostError: this one has lost the run.
            CheckpointError: the place cannot be opened or written, or holds no runs.
        """

    def open_for_reading(self, *, lost: list[DamagedError] | None = None) -> AbstractAsyncContextManager[Reader]:
        """Open the place to look at runs: nothing is written.

        Args:
            lost: Gets what is damaged, if given, and the rest is read as if that were not there.

        Raises:
            CheckpointError: it cannot be read, or holds no runs.
            DamagedError: a record that is read is not what was stored.
        """

    async def measure(self) -> int:
        """Return the bytes that all runs take.

        Raises:
            CheckpointError: the place cannot be read.
        """

    async def reclaim(self) -> None:
        """Give back to the disk what the place no longer needs.

        Raises:
            CheckpointError: it cannot be written, or is kept busy.
        """

    def open_events(
        self, thread_id: str, log_dir: str | None, *, held_as: str | None = None
    ) -> AbstractContextManager[EventReader]:
        """Open a run's events to read them; ``held_as`` is the name that it is held by, where that is another.

        Raises:
            CheckpointError: there are none, or they cannot be read.
        """
