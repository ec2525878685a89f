"""Records of newer versions are read: what is not known is kept, left out, or told as a generic event."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from drpo_graph.events.base import EVENT_SCHEMA, UnknownEvent
from drpo_graph.events.schema import Event, LevelFinished, RunFinished, parse_event
from tests.display.sample_events import sample_events

FINISHED, LEVEL = sample_events()[-1], next(one for one in sample_events() if isinstance(one, LevelFinished))


def stored(event: Event, **changes: Any) -> dict[str, Any]:
    """Return an event as a record of a log, with changes."""
    return {**event.model_dump(mode="json"), **changes}


@pytest.mark.parametrize(
    "way", [json.dumps, lambda record: json.dumps(record).encode(), dict], ids=["text", "raw", "part"]
)
def test_unknown_fields_are_kept_and_those_of_records_in_it_left_out(way: Any) -> None:
    newer = stored(LEVEL, mood="calm", notes=[{"a": 1}])
    newer["beam"][0]["colour"] = "red"
    newer["usage"]["images"] = 3
    read = parse_event(way(newer))
    assert isinstance(read, LevelFinished)
    assert (read.beam, read.usage) == (LEVEL.beam, LEVEL.usage)
    assert json.loads(read.model_dump_json()) == stored(LEVEL, mood="calm", notes=[{"a": 1}])


def test_unknown_fields_deep_in_a_result_are_left_out() -> None:
    newer = stored(FINISHED)
    newer["result"]["validation"]["comparisons"][0]["p_value"] = 0.01
    newer["result"]["usage_by_role"]["base"]["images"] = 3
    before = json.dumps(newer)
    assert parse_event(newer) == FINISHED
    assert json.dumps(newer) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "mood_changed", "mood": {"is": "calm"}},
        {"schema_version": EVENT_SCHEMA + 1, "result": "in another form"},
    ],
    ids=["unknown type", "newer schema"],
)
def test_what_cannot_be_known_is_a_generic_event_that_is_written_as_it_was(changes: dict[str, Any]) -> None:
    newer = stored(FINISHED, **changes)
    read = parse_event(json.dumps(newer))
    assert isinstance(read, UnknownEvent)
    assert (read.type, read.run_id, read.seq) == (newer["type"], FINISHED.run_id, FINISHED.seq)
    assert read.fields["result"] == newer["result"]
    assert json.loads(read.model_dump_json()) == newer


def test_newer_schema_whose_fields_are_known_is_read_as_what_it_is() -> None:
    assert isinstance(parse_event(stored(FINISHED, schema_version=EVENT_SCHEMA + 1, mood="calm")), RunFinished)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        b"\xff",
        "[" * 100_000,
        "[1]",
        "{}",
        {"type": "progress", "run_id": "another library's", "done": 3},
        {"type": ["a"], "run_id": "r", "seq": 1, "time": 1.0, "schema_version": 1},
        stored(FINISHED, result={"thread_id": 5}, mood="calm"),
        {key: value for key, value in stored(LEVEL, mood="calm").items() if key != "usage"},
    ],
    ids=["broken", "no text", "deep", "no object", "empty", "foreign", "odd type", "damaged", "lacking"],
)
def test_what_is_no_event_stays_an_error(record: Any) -> None:
    with pytest.raises(ValidationError):
        parse_event(record)
