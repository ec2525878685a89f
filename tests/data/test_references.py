"""Queries with reference answers, from files of every form."""

import json
from pathlib import Path

import pytest

from drpo_graph.data.references import REFERENCE_FIELDS, load_answered_queries, load_bundled_problems
from drpo_graph.errors import DatasetError
from drpo_graph.parts.numbers import last_number


@pytest.mark.parametrize("field", REFERENCE_FIELDS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_reference_is_read_by_its_column(tmp_path: Path, field: str, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    record = {"question": "How many?", field: "It is\n#### 72", "split": "test"}
    if suffix == "csv":
        path.write_text(f'question,{field},split\n"How many?","It is\n#### 72",test\n')
    else:
        path.write_text(json.dumps(record if suffix == "jsonl" else [record]))
    (one,) = load_answered_queries(path)
    assert (one.query.text, one.reference, one.split) == ("How many?", "It is\n#### 72", "test")


def test_what_is_no_text_stands_as_json_and_nothing_as_none(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    values = (72, 0.5, True, {"a": [1]}, None, "")
    path.write_text("".join(json.dumps({"input": f"q{n}", "target": one}) + "\n" for n, one in enumerate(values)))
    assert [one.reference for one in load_answered_queries(path)] == ["72", "0.5", "true", '{"a": [1]}', None, ""]


def test_text_files_have_no_references_and_faults_are_told_as_of_queries(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("One?\nTwo?\n")
    assert [one.reference for one in load_answered_queries(path)] == [None, None]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"answer": "72"}\n')
    with pytest.raises(DatasetError, match=r"bad\.jsonl:1: no text"):
        load_answered_queries(bad)


def test_bundled_problems_have_whole_numbers_for_answers() -> None:
    problems = load_bundled_problems()
    assert len({one.query.text for one in problems}) == len({one.query.id for one in problems}) == 24
    for one in problems:
        number = last_number(one.reference or "")
        assert number is not None
        assert number.value.denominator == 1
