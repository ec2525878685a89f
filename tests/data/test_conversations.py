"""Conversations as records: the last user turn is asked, after what stands before it."""

import json
from pathlib import Path

import pytest

from drpo_graph.data.datasets import load_queries
from drpo_graph.data.order import dataset_hash
from drpo_graph.data.references import load_answered_queries
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query, Turn

TURNS = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"), ("assistant", "So.")]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
HISTORY = (Turn(role="user", content="Hi"), Turn(role="assistant", content="Hello"))


def write(folder: Path, *rows: object) -> Path:
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": role, "content": text} for role, text in TURNS]},
        {"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]},
        {"conversations": [{"from": SHAREGPT[role], "value": text} for role, text in TURNS]},
        {"prompt": [{"role": role, "content": text} for role, text in TURNS], "chosen": "x"},
        {"prompt": "Hi", "messages": [{"role": role, "content": text} for role, text in TURNS]},
        {"query": "Why?", "answer": "So.", "history": [{"role": role, "content": text} for role, text in TURNS[1:3]]},
    ],
)
def test_last_user_turn_is_the_query_and_the_rest_its_history(tmp_path: Path, row: object) -> None:
    ((query, reference, _),) = load_answered_queries(write(tmp_path, row))
    assert (query.text, query.history, reference) == ("Why?", HISTORY, "So.")


def test_single_turn_is_a_plain_query(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}]}
    assert load_queries(write(tmp_path, row)) == (Query(id="s-001", text="a"),)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no user turn"),
        ([{"role": "assistant", "content": "a"}], "no user turn"),
        (["a"], "message 1: expected an object, got str"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "message 2: role 'tool' is none of"),
        ([{"role": "user", "content": None}], "message 1: expected text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1: expected text"),
        ([{"role": "user", "content": " "}], "the last user turn is blank"),
        ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair"),
        ([{"role": "user", "content": "\ud83d"}, {"role": "user", "content": "b"}], "turn 1 has half of a surrogate"),
    ],
)
def test_conversation_that_cannot_be_read_is_told_with_its_row(
    tmp_path: Path, messages: list[object], said: str
) -> None:
    path = write(tmp_path, {"query": "fine"}, {"messages": messages})
    with pytest.raises(DatasetError) as caught:
        load_queries(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2: messages: ")
    assert said in problem


def test_history_is_part_of_what_a_run_is_fingerprinted_by_and_of_what_is_stored() -> None:
    plain, told = Query(id="a", text="Why?"), Query(id="a", text="Why?", history=HISTORY)
    assert dataset_hash([plain]) != dataset_hash([told])
    assert "history" not in plain.model_dump()
    assert Query.model_validate(told.model_dump(mode="json")) == told


def test_judges_are_shown_the_conversation() -> None:
    query = Query(id="a", text="Why?", history=HISTORY)
    assert [query.transcript.index(text) for text in ("Hi", "Hello", "Why?")] == sorted(
        query.transcript.index(text) for text in ("Hi", "Hello", "Why?")
    )
    assert Query(id="a", text="Why?").transcript == "Why?"
