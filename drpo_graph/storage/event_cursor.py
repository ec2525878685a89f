"""Read a run's stored events in order, each once, from any number on."""

from collections.abc import Callable, Iterator

from pydantic import ValidationError

from drpo_graph.errors import CheckpointError
from drpo_graph.events.log import number_after
from drpo_graph.events.schema import CollectionFinished, Event, ICLFinished, RunFinished, parse_event
from drpo_graph.storage.protocols import EventReader


class EventCursor:
    """Where a reader is in a run's events."""

    def __init__(self, reader: EventReader, since: int = 0, *, skipped: Callable[[str], None]) -> None:
        """Begin to read.

        Args:
            reader: The run's events.
            since: Number of the last event that is known already.
            skipped: Told why a line cannot be read; the events around it still count.
        """
        self.has_result = False
        """Whether the last event ends the run."""
        self._reader = reader
        self._since = since
        self._skipped = skipped
        self._last = 0

    def read(self) -> Iterator[Event]:
        """Yield the events that are not read yet."""
        for line in self._reader.read(self._since):
            if line.text.isspace():
                continue
            try:
                event = parse_event(self._reader.open_line(line.text))
            except (ValidationError, CheckpointError) as error:
                # A killed process may have left half a line.
                self._skipped(error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error))
                continue
            self._last = number_after(self._last, event.seq, line)
            self.has_result = isinstance(event, RunFinished | ICLFinished | CollectionFinished)
            if self._last > self._since:
                yield event if event.seq == self._last else event.model_copy(update={"seq": self._last})

    def follow(self, *, is_live: bool = True) -> Iterator[Iterator[Event]]:
        """Yield what is there, and while a process works on the run, again and again what has come meanwhile.

        Whoever reads takes all of each part, and pauses before the next one.
        """
        while True:
            is_active = is_live and self._reader.is_written()
            # What a process wrote before it went is read after it was seen to be gone.
            yield self.read()
            if self.has_result or not is_active:
                return
