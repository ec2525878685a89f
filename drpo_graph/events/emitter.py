"""Send events to the run's sinks and into LangGraph's custom stream."""

import time
from collections.abc import Callable, Sequence

from langgraph.config import get_stream_writer

from drpo_graph.events.base import ProgressEvent
from drpo_graph.events.progress import Progress
from drpo_graph.events.schema import Event, Warned

EventSink = Callable[[Event], None]
"""Takes each event as it happens; must return at once."""

_BLOCK = 1_000_000_000
"""No process tells so many events."""


class Numbering:
    """Numbers one run's events, in one process, after those that former processes have told."""

    def __init__(self, last: int = 0, *, is_logged: bool = False) -> None:
        """Begin to number.

        Args:
            last: The last number in the run's log, 0 where there is none.
            is_logged: Whether what is told from here on is in a log, in which the next process finds it.
        """
        self.last = last
        self.is_logged = is_logged
        self.elapsed_s: Callable[[], float] = float
        """Returns the seconds that the run's processes have worked on it; 0 as long as that is not known."""

    def begin(self, num_former: int) -> None:
        """Leave out the numbers of former processes that left no log: each may have used a block of them."""
        if not self.last:
            self.last = num_former * _BLOCK

    def next(self) -> int:
        """Return the next event's number."""
        self.last += 1
        return self.last


class Emitter:
    """Stamps one run's events with order and time, and hands them on."""

    def __init__(
        self,
        run_id: str,
        sinks: Sequence[EventSink] = (),
        *,
        numbering: Numbering | None = None,
        is_streamed: bool = True,
    ) -> None:
        """Make an emitter.

        Args:
            run_id: The run.
            sinks: Get every event.
            numbering: What the run's other emitters number with, if there are any.
            is_streamed: Whether events go into LangGraph's custom stream as well.
        """
        self.run_id = run_id
        self._is_streamed = is_streamed
        self._sinks = tuple(sinks)
        self._numbering = numbering or Numbering()
        self._progress = Progress()

    def emit(self, event: Event) -> None:
        """Hand an event to every sink and, inside a graph run, to its custom stream."""
        # Those that are read may hold fields of newer versions; in one that is made here such a field is a misspelling.
        assert not event.model_extra, f"{event.type} has no {', '.join(event.model_extra or ())}"
        now = time.time()
        stamp = {"seq": self._numbering.next(), "time": now, "elapsed_s": round(self._numbering.elapsed_s(), 3)}
        stamped = event.model_copy(update=stamp)
        self._progress.take(stamped)
        if isinstance(stamped, ProgressEvent) and (remaining_s := self._progress.remaining_s(now)) is not None:
            stamped = stamped.model_copy(update={"remaining_s": round(remaining_s, 3)})
        for sink in self._sinks:
            sink(stamped)
        if not self._is_streamed:
            return
        try:
            write = get_stream_writer()
        except RuntimeError:  # Not inside a graph run: there is no stream to write to.
            return
        write(stamped.model_dump(mode="json"))

    def warn(self, message: str) -> None:
        """Tell, in one line, what affects the result or holds it up."""
        self.emit(Warned(run_id=self.run_id, message=message))
