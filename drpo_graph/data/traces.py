"""Traces of an app, as tracing services export them, made into a dataset of what the app was asked. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pydantic import JsonValue

from drpo_graph.data.conversations import MESSAGES_FIELDS
from drpo_graph.data.formats import find_format, read_values
from drpo_graph.data.rows import Malformed, check_string, describe_names
from drpo_graph.data.trace_requests import find_request
from drpo_graph.errors import DatasetError
from drpo_graph.records import Turn
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.safety.text_files import to_utf8

_LISTS: Final = ("traces", "runs", "data")
"""What the list of records may be called in an object."""
_LANGFUSE: Final = frozenset(
    {"sessionId", "session_id", "userId", "user_id", "observations", "scores", "timestamp", "projectId", "project_id"}
)
_EXPECTED: Final = ("expected_response", "expected_output", "expected_answer", "ground_truth")
_CORRECTED: Final = ("stringValue", "string_value", "longStringValue", "long_string_value")
_MAX_RATING: Final = 1e9
_WORDS: Final = {"yes": 1.0, "true": 1.0, "pass": 1.0, "no": 0.0, "false": 0.0, "fail": 0.0}
_NO_FORM: Final = "of no known form: expected a run of LangSmith, a trace of Langfuse or MLflow, or messages"


class _Trace(NamedTuple):
    """What a record of any service comes to."""

    request: object
    id: object = None
    is_root: bool = True
    is_failed: bool = False
    ratings: tuple[float, ...] = ()
    reference: str | None = None


class _Asked(NamedTuple):
    id: str
    text: str
    history: tuple[Turn, ...]
    is_failed: bool
    rating: float | None
    """The lowest."""
    reference: str | None

    def merge(self, other: "_Asked") -> "_Asked":
        """Return the first of two that ask the same, with what is known of either."""
        ratings = [one for one in (self.rating, other.rating) if one is not None]
        return self._replace(
            is_failed=self.is_failed or other.is_failed,
            rating=min(ratings, default=None),
            reference=other.reference if self.reference is None else self.reference,
        )

    def as_row(self) -> dict[str, JsonValue]:
        """Return the row of a dataset, without what is not known."""
        tags: list[JsonValue] = ["failed"] if self.is_failed else []
        tags += [f"rated:{self.rating:g}"] if self.rating is not None else []
        row: dict[str, JsonValue] = {"id": self.id, "text": self.text}
        history: list[JsonValue] = [{"role": one.role, "content": one.content} for one in self.history]
        more: dict[str, JsonValue] = {"history": history, "tags": tags, "reference": self.reference}
        return row | {name: one for name, one in more.items() if one}


class ImportedTraces(NamedTuple):
    """The rows of a dataset, and what became of the other records."""

    rows: tuple[dict[str, JsonValue], ...]
    """With ``id`` and ``text``; where there are any, ``history``, ``tags`` (``failed``, ``rated:2``), ``reference``."""
    num_records: int
    num_inner: int
    """Runs inside of other runs."""
    num_repeated: int
    """Those that ask what an earlier one asked; what is known of them is kept with that one."""
    num_unwanted: int
    """Those that did not fail, or are rated higher, or not at all, where that was asked for."""
    faults: tuple[str, ...]
    """Records that cannot be used, each with its place."""


def import_traces(
    data: bytes, *, name: str, suffix: str = ".jsonl", max_rating: float | None = None, failed_only: bool = False
) -> ImportedTraces:
    """Return what an app was asked, in the order of its traces.

    Args:
        data: The content of a file, JSON lines or JSON: LangSmith's runs, Langfuse's traces, MLflow's traces, or
            conversations in OpenAI's form. Each record is told by its fields.
        name: The file, as faults name it.
        suffix: The ending of its name.
        max_rating: Only those of which the lowest rating is at most this.
        failed_only: Only those that ended in an error.

    Raises:
        DatasetError: it is neither JSON lines nor JSON.
    """
    file_format = find_format(suffix.lower(), data, name=name)
    if file_format not in ("json", "jsonl"):
        raise DatasetError(f"{name} is read as {file_format}: expected traces as JSON lines or JSON.")
    asked: dict[tuple[str, tuple[tuple[str, str], ...]], _Asked] = {}
    faults: list[str] = []
    ids: set[str] = set()
    keys = KeyFinder()
    num_records = num_inner = num_repeated = num_unwanted = 0
    for number, (place, record) in enumerate(_read_records(data, is_json=file_format == "json"), 1):
        own: list[str] = []
        num_records = number
        trace = _read_trace(record, faults=own)
        if trace is not None and not trace.is_root:
            num_inner += 1
            continue
        one = _read_asked(trace, default_id=f"trace-{number:04d}", keys=keys, faults=own) if trace else None
        if one is None:
            faults.append(f"{name}{place}: {'; '.join(own)}")
            continue
        if (failed_only and not one.is_failed) or (
            max_rating is not None and (one.rating is None or one.rating > max_rating)
        ):
            num_unwanted += 1
            continue
        question = one.text, tuple((turn.role, turn.content) for turn in one.history)
        if question in asked:
            num_repeated += 1
            asked[question] = asked[question].merge(one)
            continue
        # An id may stand twice, with different questions.
        asked[question] = one if one.id not in ids else one._replace(id=f"{one.id}-{number}")
        ids.add(asked[question].id)
    rows = tuple(one.as_row() for one in asked.values())
    return ImportedTraces(rows, num_records, num_inner, num_repeated, num_unwanted, tuple(faults))


def _read_records(data: bytes, *, is_json: bool) -> Iterable[tuple[str, object]]:
    if is_json:
        try:
            value = json.loads(to_utf8(data))
        except (ValueError, RecursionError):
            # Told with its place below.
            value = None
        if isinstance(value, Mapping):
            records = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), [value])
            return ((f": record {number}", one) for number, one in enumerate(records, 1))
    return read_values(data, "json" if is_json else "jsonl")


def _read_asked(trace: _Trace, *, default_id: str, keys: KeyFinder, faults: list[str]) -> _Asked | None:
    exchange = find_request(trace.request, faults=faults)
    given_id = default_id if trace.id is None else str(trace.id)
    trace_id = check_string(given_id, "id", faults=faults).strip()
    if trace.reference is not None:
        check_string(trace.reference, "the reference", faults=faults, may_be_blank=True)
    if exchange is None or faults:
        return None
    texts = [trace_id, exchange.query, trace.reference or "", *(turn.content for turn in exchange.history)]
    if words := next(filter(None, map(keys.find, texts)), ""):
        faults.append(f"it holds {words}, and what is read is stored")
        return None
    rating = min(trace.ratings, default=None)
    return _Asked(trace_id, exchange.query, exchange.history, trace.is_failed, rating, trace.reference)


def _read_trace(record: object, *, faults: list[str]) -> _Trace | None:
    """Return what a record is, told by its fields; ``None`` where it is nothing that is known."""
    if not isinstance(record, Mapping):
        told = record.reason if isinstance(record, Malformed) else f"expected an object, got {type(record).__name__}"
        faults.append(told)
        return None
    if "run_type" in record or "dotted_order" in record:
        return _read_langsmith(record)
    if isinstance(record.get("info"), Mapping):
        return _read_mlflow(record)
    if isinstance(inner := record.get("trace"), Mapping):
        # The download of one trace has its observations and scores beside it.
        record = {**record, **inner}
    if "input" in record and not _LANGFUSE.isdisjoint(record):
        return _read_langfuse(record)
    if any(record.get(name) for name in MESSAGES_FIELDS):
        return _Trace({name: record[name] for name in MESSAGES_FIELDS if name in record}, record.get("id"))
    faults.append(f"{_NO_FORM}, {describe_names(record)}")
    return None


def _read_langsmith(run: Mapping[str, object]) -> _Trace:
    """Return a run: ``langsmith.schemas.Run`` of langsmith 0.15, with a list of ``Feedback`` where that was added."""
    feedback = list(_records_of(run.get("feedback")))
    stats = run.get("feedback_stats")
    averages = (
        [one.get("avg") for one in stats.values() if isinstance(one, Mapping)] if isinstance(stats, Mapping) else []
    )
    corrections = (_as_text(one.get("correction")) for one in feedback)
    order = run.get("dotted_order")
    return _Trace(
        run.get("inputs"),
        run.get("id"),
        is_root=not run.get("parent_run_id") and not (isinstance(order, str) and "." in order),
        is_failed=bool(run.get("error")) or run.get("status") == "error",
        ratings=_numbers([*averages, *(one.get("score") for one in feedback)]),
        reference=next(filter(None, corrections), None),
    )


def _read_langfuse(trace: Mapping[str, object]) -> _Trace:
    """Return a trace of Langfuse 3's API (``TraceWithFullDetails``), or a row of its exports."""
    scores = list(_records_of(trace.get("scores")))
    corrected = [one for one in scores if _field(one, "dataType", "data_type") == "CORRECTION"]
    rated = [one for one in scores if _field(one, "dataType", "data_type") not in ("CORRECTION", "CATEGORICAL", "TEXT")]
    levels = [trace.get("level"), *(one.get("level") for one in _records_of(trace.get("observations")))]
    texts = (_as_text(_field(one, *_CORRECTED)) for one in corrected)
    return _Trace(
        _from_json(trace["input"]),
        trace.get("id"),
        is_root=not _field(trace, "parentObservationId", "parent_observation_id"),
        is_failed="ERROR" in levels,
        ratings=_numbers(one.get("value") for one in rated),
        reference=next(filter(None, texts), None),
    )


def _read_mlflow(trace: Mapping[str, object]) -> _Trace:
    """Return a trace as ``Trace.to_json`` of MLflow 3 or 2 writes it; its request is the input of the root span."""
    info, data = trace["info"], trace.get("data")
    assert isinstance(info, Mapping)
    data = data if isinstance(data, Mapping) else {}
    spans = _records_of(data.get("spans"))
    root = next((one for one in spans if not _field(one, "parent_span_id", "parent_id")), {})
    attributes = root.get("attributes")
    given = attributes.get("mlflow.spanInputs") if isinstance(attributes, Mapping) else None
    # The preview may be cut.
    request = given or data.get("request") or info.get("request_preview")
    # One that was corrected later is kept, and no longer valid.
    assessments = [one for one in _records_of(info.get("assessments")) if one.get("valid") is not False]
    expected = {str(one.get("assessment_name")): _value_of(one.get("expectation")) for one in assessments}
    names = [*(one for one in _EXPECTED if one in expected), *expected]
    return _Trace(
        _from_json(request),
        _field(info, "trace_id", "request_id"),
        is_failed=_field(info, "state", "status") == "ERROR",
        ratings=_numbers(_value_of(one.get("feedback")) for one in assessments),
        reference=next(filter(None, (_as_text(expected[one]) for one in names)), None),
    )


def _value_of(given: object) -> object:
    """Return the value of a feedback or an expectation, which is kept as JSON where it is no plain one."""
    if not isinstance(given, Mapping):
        return None
    kept = given.get("serialized_value")
    return _from_json(kept.get("value")) if isinstance(kept, Mapping) else given.get("value")


def _field(fields: Mapping[str, object], *names: str) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _records_of(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, list):
        yield from (one for one in value if isinstance(one, Mapping))


def _numbers(values: Iterable[object]) -> tuple[float, ...]:
    """Return ratings: numbers, and what says yes or no as 1 or 0."""
    given = [_WORDS.get(one.lower()) if isinstance(one, str) else one for one in values]
    return tuple(float(one) for one in given if isinstance(one, int | float) and abs(one) <= _MAX_RATING)


def _from_json(value: object) -> object:
    """Return what a text says that is an object, a list or a text in JSON; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _as_text(value: object) -> str | None:
    """Return a reference as text: that of its one field, else all of it as JSON."""
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
