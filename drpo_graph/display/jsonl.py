"""Events for programs: one JSON line each, on stdout, and nothing else."""

import json
from typing import TextIO

from pydantic_core import PydanticSerializationError

from drpo_graph.display.base import Display
from drpo_graph.display.streams import quiet
from drpo_graph.events.schema import Event
from drpo_graph.safety.terminal import inert_json


class JsonlDisplay(Display):
    """Writes each event as one flushed JSON line."""

    def __init__(self, stdout: TextIO) -> None:
        self._stream = quiet(stdout)

    def handle(self, event: Event) -> None:
        """Write the event."""
        self._stream.write(_json_line(event, encoding=self._stream.encoding) + "\n")
        self._stream.flush()


def _json_line(event: Event, *, encoding: str) -> str:
    try:
        line = event.model_dump_json()
        line.encode(encoding)
    except (PydanticSerializationError, UnicodeEncodeError):
        # A lone surrogate in a model's reply, or a stream that is not UTF-8: escapes say the same in ASCII.
        return json.dumps(event.model_dump(), separators=(",", ":"))
    return inert_json(line)
