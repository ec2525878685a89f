"""Traces of an app as a dataset: each service's form is told by its fields, and no record is dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, messages_to_dict

from drpo_graph.data.datasets import load_queries
from drpo_graph.data.references import load_answered_queries
from drpo_graph.data.traces import ImportedTraces, import_traces
from drpo_graph.errors import DatasetError
from drpo_graph.records import Turn

KEY = "sk-live-4f9a8b7c6d5e4f3a2b1c"
CALL = {"name": "look", "args": {}, "id": "1"}
LANGCHAIN = [
    SystemMessage("Be kind."),
    HumanMessage("Hi"),
    AIMessage("", tool_calls=[CALL]),  # type: ignore[list-item]
    ToolMessage("found", tool_call_id="1"),
    AIMessage([{"type": "text", "text": "Hello"}, {"type": "tool_use", "id": "2", "name": "look", "input": {}}]),
    HumanMessage([{"type": "text", "text": "Why?"}]),
]
OPENAI = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    {"role": "tool", "tool_call_id": "1", "content": "found"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    {"role": "assistant", "content": "So."},
]
HISTORY = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
FORMS: dict[str, Any] = {
    "kwargs": {"messages": [dumpd(LANGCHAIN)]},
    "data": {"messages": messages_to_dict(LANGCHAIN)},
    "dumped": {"input": {"messages": [one.model_dump() for one in LANGCHAIN]}},
    "openai": {"messages": OPENAI},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
                                   {"from": "human", "value": "Why?"}]},
    "pairs": {"messages": [["system", "Be kind."], ["human", "Hi"], ["ai", "Hello"], ["user", "Why?"]]},
    "history": {"input": "Why?", "chat_history": messages_to_dict(LANGCHAIN[:5])},
    "tool results": {"messages": [*OPENAI, {"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
    "alone": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
              {"role": "user", "content": "Why?"}],
}  # fmt: skip


def langsmith(inputs: object, **more: object) -> dict[str, object]:
    """Return a run as langsmith 0.15 has it (``langsmith.schemas.Run``)."""
    return {"id": "r1", "name": "agent", "run_type": "chain", "inputs": inputs, "outputs": {"output": "So."},
            "parent_run_id": None, "error": None, "trace_id": "r1", **more}  # fmt: skip


def langfuse(given: object, **more: object) -> dict[str, object]:
    """Return a trace as the API of Langfuse 3 has it (``TraceWithFullDetails``)."""
    return {"id": "t1", "timestamp": "2026-01-01T00:00:00Z", "name": "agent", "input": given, "output": "So.",
            "sessionId": None, "scores": [], "observations": [], **more}  # fmt: skip


def mlflow(given: object, *, assessments: object = (), **info: object) -> dict[str, object]:
    """Return a trace as ``Trace.to_json`` of MLflow 3 writes it."""
    spans = [
        {"span_id": "2", "parent_span_id": "1", "attributes": {"mlflow.spanInputs": '"inner"'}},
        {"span_id": "1", "parent_span_id": None, "attributes": {"mlflow.spanInputs": json.dumps(given)}},
    ]
    more = {"trace_id": "m1", "state": "OK", "request_preview": "cut", "assessments": list(assessments), **info}  # type: ignore[call-overload]
    return {"info": more, "data": {"spans": spans}}


def read(*records: object, **given: Any) -> ImportedTraces:
    lines = "".join(json.dumps(one) + "\n" for one in records)
    return import_traces(lines.encode(), name="t.jsonl", **given)


def row(record: object) -> dict[str, Any]:
    found = read(record)
    assert found.faults == ()
    return found.rows[0]


@pytest.mark.parametrize("make", [langsmith, langfuse, mlflow])
@pytest.mark.parametrize("form", FORMS)
def test_request_is_the_last_turn_of_the_user_in_any_form(form: str, make: Any, tmp_path: Path) -> None:
    found = row(make(FORMS[form]))
    assert found == {"id": found["id"], "text": "Why?", "history": HISTORY}
    (tmp_path / "q.jsonl").write_text(json.dumps(found))
    (query,) = load_queries(tmp_path / "q.jsonl")
    assert query.history == tuple(Turn.model_validate(one) for one in HISTORY)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (langsmith({"question": "Why?"}), "Why?"),
        (langsmith({"topic": "Why?"}), "Why?"),
        (langsmith({"k": 3, "input": {"query": "Why?"}}), "Why?"),
        (langfuse("Why?"), "Why?"),
        (langfuse('{"question": "Why?"}'), "Why?"),
        (langfuse('"Why?"'), "Why?"),
        (langfuse("[sic] why?"), "[sic] why?"),
        ({"trace": {"id": "t1", "input": "Why?"}, "observations": [], "scores": []}, "Why?"),
        (mlflow({"question": "Why?"}), "Why?"),
        # MLflow 2.
        ({"info": {"request_id": "m1"}, "data": {"request": '{"question": "Why?"}', "spans": []}}, "Why?"),
        ({"messages": OPENAI, "id": 7}, "Why?"),
    ],
)  # fmt: skip
def test_each_form_is_told_by_its_fields(record: object, text: str) -> None:
    found = row(record)
    assert found["text"] == text
    assert found["id"] in ("r1", "t1", "m1", "7")


def score(value: object, **more: object) -> dict[str, object]:
    return {"id": "s", "name": "quality", "value": value, "dataType": "NUMERIC", **more}


def assessment(name: str, **more: object) -> dict[str, object]:
    return {"assessment_name": name, "trace_id": "m1", "source": {"source_type": "HUMAN"}, **more}


CORRECTION = score(0, name="output", dataType="CORRECTION", stringValue="Right.")
EXPECTED = assessment("expected_response", expectation={"value": "Right."})
FACTS = assessment("facts", expectation={"serialized_value": {"value": '["a", "b"]'}})
STATS = {"a": {"n": 2, "avg": 0.5}, "b": {"n": 1, "avg": None}}
SAID = [assessment("right", feedback={"value": "no"}), assessment("long", feedback={"value": True})]
CORRECTED = {"key": "a", "score": 2, "correction": {"output": "Right."}}


@pytest.mark.parametrize(
    ("record", "tags", "reference"),
    [
        (langfuse("Why?", scores=[score(float("nan")), score(10**400), score(None), score("x")]), [], None),
        (langsmith("Why?", error="ValueError"), ["failed"], None),
        (langsmith("Why?", status="error"), ["failed"], None),
        (langsmith("Why?", feedback_stats=STATS), ["rated:0.5"], None),
        (langsmith("Why?", feedback=[CORRECTED]), ["rated:2"], "Right."),
        (langfuse("Why?", scores=[score(4), score(2), CORRECTION, "an id"]), ["rated:2"], "Right."),
        (langfuse("Why?", scores=[score("bad", dataType="CATEGORICAL")]), [], None),
        (langfuse("Why?", observations=[{"id": "o", "level": "ERROR"}]), ["failed"], None),
        (mlflow("Why?", state="ERROR", assessments=[EXPECTED]), ["failed"], "Right."),
        (mlflow("Why?", assessments=SAID), ["rated:0"], None),
        (mlflow("Why?", assessments=[FACTS, EXPECTED]), [], "Right."),
        (mlflow("Why?", assessments=[{**SAID[0], "valid": False}, {**EXPECTED, "valid": False}]), [], None),
        (mlflow("Why?", assessments=[FACTS]), [], '["a", "b"]'),
    ],
)
def test_what_is_known_of_the_answer_is_kept(
    record: object, tags: list[str], reference: str | None, tmp_path: Path
) -> None:
    found = row(record)
    assert found.get("tags", []) == tags
    (tmp_path / "q.jsonl").write_text(json.dumps(found))
    ((query, known, _),) = load_answered_queries(tmp_path / "q.jsonl")
    assert (list(query.tags), known) == (tags, reference)


def test_runs_inside_of_others_are_counted_and_left_out() -> None:
    found = read(
        langsmith("Why?", id="a"),
        langsmith("inner", id="b", parent_run_id="a"),
        langsmith("inner", id="c", dotted_order="20260101Za.20260101Zc"),
        langfuse("inner", parentObservationId="o"),
    )
    assert [one["id"] for one in found.rows] == ["a"]
    assert (found.num_records, found.num_inner, found.faults) == (4, 3, ())


def test_what_is_asked_again_is_kept_once_with_all_that_is_known() -> None:
    found = read(
        langfuse("Why?", id="a", scores=[score(4)]),
        langfuse("How?", id="a"),
        langfuse("Why?", id="b", scores=[score(2), CORRECTION]),
        langsmith("Why?", error="x"),
    )
    assert found.rows == (
        {"id": "a", "text": "Why?", "tags": ["failed", "rated:2"], "reference": "Right."},
        {"id": "a-2", "text": "How?"},
    )
    assert found.num_repeated == 2


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"max_rating": 2}, ["b", "d"]),
        ({"failed_only": True}, ["c", "d"]),
        ({"failed_only": True, "max_rating": 2}, ["d"]),
    ],
)
def test_only_what_is_wanted_is_kept(given: Any, ids: list[str]) -> None:
    failed = [{"level": "ERROR"}]
    found = read(
        langfuse("A?", id="a", scores=[score(3)]),
        langfuse("B?", id="b", scores=[score(2)]),
        langfuse("C?", id="c", observations=failed),
        langfuse("D?", id="d", observations=failed, scores=[score(1)]),
        **given,
    )
    assert [one["id"] for one in found.rows] == ids
    assert found.num_unwanted == 4 - len(ids)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (7, "expected an object, got int"),
        ({"a": 1}, "of no known form: .* got 'a'"),
        (langsmith({}), "no request"),
        (langsmith({"a": "x", "b": "y"}), "no request"),
        (langsmith({"messages": [{"role": "assistant", "content": "x"}]}), "no user turn"),
        (langsmith({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "expected text"),
        (langsmith({"input": "Why?", "chat_history": "Human: Hi"}), "message 1: expected an object, got str"),
        (langsmith({"input": "Why?", "history": [{"role": "?"}]}), "message 1: role"),
        (langfuse(" "), "no request"),
        (langfuse(None), "no request"),
        (langfuse("nul \0"), "NUL"),
        (mlflow({"n": 3}), "no request"),
        (langfuse("Why?", id=" "), "id is blank"),
    ],
)
def test_record_without_a_request_is_told_with_its_line(record: object, told: str) -> None:
    found = read(langfuse("Good?"), record)
    assert len(found.rows) == 1
    assert found.num_records == 2
    assert len(found.faults) == 1
    assert found.faults[0].startswith("t.jsonl:2: ")
    with pytest.raises(AssertionError, match=told):
        row(record)


def test_damaged_line_is_told_and_the_others_are_read() -> None:
    data = json.dumps(langfuse("Why?")) + "\n{\n" + json.dumps(langsmith("How?"))
    found = import_traces(data.encode(), name="t.jsonl")
    assert [one["text"] for one in found.rows] == ["Why?", "How?"]
    assert found.faults[0].startswith("t.jsonl:2: not JSON")


@pytest.mark.parametrize(
    "record",
    [
        langfuse(f"Is {KEY} mine?"),
        langfuse("Why?", id=KEY),
        langfuse("Why?", scores=[score(0, dataType="CORRECTION", stringValue=KEY)]),
        {"messages": [{"role": "user", "content": KEY}, *OPENAI]},
    ],
)
def test_key_in_use_is_refused(record: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = read(record)
    assert found.rows == ()
    (fault,) = found.faults
    assert "OPENAI_API_KEY" in fault
    assert KEY not in fault


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrap", [list, lambda records: {"traces": records}, lambda records: {"data": records}])
def test_json_documents_are_read_too(wrap: Any, indent: int | None) -> None:
    data = json.dumps(wrap([langfuse("Why?"), langsmith("How?"), 7]), indent=indent).encode()
    found = import_traces(data, name="t.json", suffix=".json")
    assert [one["text"] for one in found.rows] == ["Why?", "How?"]
    assert found.faults == ("t.json: record 3: expected an object, got int",)


def test_one_trace_may_be_a_whole_document() -> None:
    found = import_traces(json.dumps(mlflow("Why?"), indent=1).encode(), name="t.json", suffix=".json")
    assert found.rows == ({"id": "m1", "text": "Why?"},)


@pytest.mark.parametrize("data", [b"", b"Why?\n", b"text,id\nWhy?,1\n", b"PK\x03\x04"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DatasetError):
        import_traces(data, name="t.txt", suffix=".txt")


NAMES = ["run_type", "inputs", "id", "info", "data", "spans", "input", "scores", "feedback", "messages", "role"]
NAMES += ["content", "lc", "kwargs", "type", "attributes", "mlflow.spanInputs", "assessments", "expectation", "value"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "human", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@given(record=JSON)
def test_no_record_breaks_it_or_is_lost(record: object) -> None:
    found = read({"run_type": "chain", "id": "x", "inputs": "Why?"}, record)
    assert found.num_records == 2
    counted = found.num_inner + found.num_repeated + found.num_unwanted + len(found.faults)
    assert len(found.rows) + counted == 2
