"""Send events to the run's sinks and into LangGraph's custom stream."""

import time
from collections.abc import Callable, Sequence

from langgraph.config import get_stream_writer

from drpo_graph.events.schema import Event, Warned

EventSink = Callable[[Event], None]
"""Takes each event as it happens; must return at once."""


class Emitter:
    """Stamps one run's events with order and time, and hands them on."""

    def __init__(self, run_id: str, sinks: Sequence[EventSink] = (), *, is_streamed: bool = True) -> None:
        self.run_id = run_id
        self._is_streamed = is_streamed
        self._sinks = tuple(sinks)
        self._seq = 0

    def emit(self, event: Event) -> None:
        """Hand an event to every sink and, inside a graph run, to its custom stream."""
        self._seq += 1
        stamped = event.model_copy(update={"seq": self._seq, "time": time.time()})
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
