"""Our events in LangGraph's third streaming protocol: ``astream_events(..., version="v3")``."""

from contextlib import suppress
from typing import Any

from langgraph.stream import StreamChannel, StreamTransformer
from pydantic import ValidationError

from drpo_graph.events.schema import Event, parse_event

EXTENSION = "drpo"
"""What our events stand under in a stream's ``extensions``."""


class EventTransformer(StreamTransformer):
    """Delivers the events of every run inside a graph, as records, in ``stream.extensions["drpo"]``.

    Our own graphs have it. A graph around them is compiled with it, ``compile(transformers=[EventTransformer])``, or
    streamed with it, ``astream_events(..., version="v3", transformers=[EventTransformer])``.

    Args:
        scope: The place of the graph that is streamed, as LangGraph gives it.
    """

    required_stream_modes = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._events: StreamChannel[Event] = StreamChannel()

    def init(self) -> dict[str, Any]:
        """Return the channel of our events, by the name of its extension."""
        return {EXTENSION: self._events}

    def process(self, event: Any) -> bool:
        """Take up what is ours, wherever in the graph it was told; everything stays in the stream itself."""
        told = event["params"]["data"]
        if event["method"] == "custom" and isinstance(told, dict) and "run_id" in told:
            # Another library's, in the same stream, is none of this schema.
            with suppress(ValidationError):
                self._events.push(parse_event(told))
        return True
