"""What all events have in common, and how a record of a newer version is read.

The rule of compatibility. Within one ``schema_version``, versions of drpo_graph may add fields and types, and nothing
else: what is there keeps its name, its meaning and its set of values. Who reads records ignores what it does not know.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError

from drpo_graph.records import Record

EVENT_SCHEMA = 1
_BASE_FIELDS = frozenset({"schema_version", "run_id", "seq", "time", "type"})


class EventBase(Record):
    """Fields that every event has. Fields of newer versions are kept as they are read."""

    model_config = ConfigDict(extra="allow")

    schema_version: int = EVENT_SCHEMA
    run_id: str
    seq: int = 0
    """Position within the run, from 1; it goes on over processes. 0 in events that were not told yet."""
    time: float = 0.0
    """Seconds since the epoch."""
    elapsed_s: float = 0.0
    """Seconds that the run's processes have worked on it so far, all together; 0 where that is not known."""


class ProgressEvent(EventBase):
    """An event after which more of the run is done."""

    remaining_s: float | None = None
    """About how long the rest takes from here; ``None`` while nothing tells, and at the end."""


class UnknownEvent(EventBase):
    """An event of a type that this version does not know, or of a newer schema: it is for newer readers."""

    type: str

    @property
    def fields(self) -> Mapping[str, object]:
        """What it tells besides, as it was read."""
        return self.model_extra or {}


def read_newer(event: str | bytes | Mapping[str, object], error: ValidationError, types: frozenset[str]) -> Any:
    """Return a record that did not validate without the parts that this version does not know, or as a generic event.

    Args:
        event: The record.
        error: What was wrong with it.
        types: Those that this version knows.

    Raises:
        pydantic.ValidationError: it is no record of a newer version either.
    """
    try:
        content = json.loads(event) if isinstance(event, str | bytes) else event
    except (ValueError, RecursionError):  # Also bytes that are no UTF-8.
        raise error from None
    if not isinstance(content, Mapping) or not content.keys() >= _BASE_FIELDS:
        # Another library's part of the same stream is none of ours.
        raise error
    version = content["schema_version"]
    if str(content["type"]) not in types or (isinstance(version, int) and version > EVENT_SCHEMA):
        return UnknownEvent.model_validate(content)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(one["type"] != "extra_forbidden" for one in problems):
        raise error
    known = copy.deepcopy(dict(content))
    for one in problems:
        # The first part of a place is the event's type.
        _remove(known, one["loc"][1:])
    return known


def _remove(content: Any, place: Sequence[int | str]) -> None:
    for step in place[:-1]:
        content = content[step]
    content.pop(place[-1], None)
