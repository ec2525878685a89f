"""Tables of demonstrations in files."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.tables import load_demonstrations, save_demonstrations

ROWS = [
    Demonstration("q1", "p1", 1.0, model="m", split="train", tokens=12.5, prompt_name="one", confidence=0.25),
    Demonstration("q2\n“é” 🎈", "p1", 0.0, model="m", split="test", tokens=0.0, prompt_name="one", confidence=0.0),
    Demonstration("q1", "p2\\ \t", 0.5, model="n", prompt_name="two"),
]
NAMES = ["a.parquet", "a.PQ", "a.jsonl"]
LEAST: dict[str, Any] = {"query": "q", "prompt": "p", "outcome": 1.0}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as they are, whatever is wrong with them."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def fail(sources: Path | list[Path], **kwargs: Any) -> str:
    """Return what was wrong, which must be told in one line, or one line each after a first."""
    with pytest.raises(DemonstrationsError) as raised:
        load_demonstrations(sources, **kwargs)
    told = str(raised.value)
    lines = told.splitlines()
    num_problems = len(raised.value.problems)
    assert len(lines) == (1 + num_problems if num_problems > 1 else 1)
    assert all(len(line) < 400 for line in lines)
    return told


def tell(path: Path) -> str | None:
    """Return what is wrong with a file, ``None`` where nothing is."""
    try:
        load_demonstrations(path)
    except DemonstrationsError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    assert save_demonstrations(path, ROWS) == 3
    found = load_demonstrations(path)
    assert list(found) == ROWS
    assert found.digest() == Demonstrations.from_rows(ROWS).digest()
    assert os.stat(path).st_mode & 0o077 == 0


@pytest.mark.parametrize("name", NAMES)
def test_half_a_surrogate_pair_comes_back_as_a_replacement_sign(tmp_path: Path, name: str) -> None:
    row = Demonstration("q\ud800", "p\udfff", 1.0, model="m\ud800", prompt_name="n\ud800")
    save_demonstrations(tmp_path / name, [row])
    assert list(load_demonstrations(tmp_path / name)) == [
        Demonstration("q\ufffd", "p\ufffd", 1.0, "m\ufffd", prompt_name="n\ufffd")
    ]


def test_a_table_may_be_written_from_a_table(tmp_path: Path) -> None:
    table = Demonstrations.from_rows(ROWS)
    save_demonstrations(tmp_path / "a.parquet", table)
    assert load_demonstrations(tmp_path / "a.parquet").digest() == table.digest()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_three_columns_are_enough(tmp_path: Path, name: str) -> None:
    row = next(iter(load_demonstrations(write_rows(tmp_path / name, LEAST))))
    assert row == Demonstration("q", "p", 1.0, prompt_name="p")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_columns_that_nobody_knows_are_told_once_and_left_unread(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / name, *[LEAST | {"Model": "m", "note\n": {"x": [1]}}] * 3)
    with caplog.at_level(logging.WARNING):
        assert load_demonstrations(path).models == ("",)
    assert len(caplog.messages) == 1
    assert f"{path}: columns left unread: Model, note (known: query, prompt, outcome, model" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("name", NAMES)
def test_known_columns_are_not_told(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    save_demonstrations(tmp_path / name, ROWS)
    load_demonstrations(tmp_path / name)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("outcome", 1.5, "outcome 1.5, expected a number from 0 to 1"),
        ("outcome", float("nan"), "outcome nan, expected a number from 0 to 1"),
        ("outcome", None, "outcome None, expected a number from 0 to 1"),
        ("query", " ", "the query is blank, expected a text"),
        ("query", None, "the query is None, expected a text"),
        ("prompt", "", "the prompt is blank, expected a text"),
        ("split", "dev", "split 'dev', expected train, test or none"),
        ("tokens", -1.0, "tokens -1.0, expected a number from 0 on"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, column: str, value: object, problem: str
) -> None:
    good = LEAST | {"split": "train", "tokens": 1.0}
    path = write_rows(tmp_path / name, good, good, good | {column: value}, good | {column: value})
    assert fail(path).removeprefix("The demonstrations cannot be used: ") == f"{path}, row 3: {problem}"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_an_outcome_that_is_a_text_is_named(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, LEAST | {"outcome": "1"})
    assert (
        fail(path).removeprefix("The demonstrations cannot be used: ")
        == f"{path}, row 1: outcome '1', expected a number from 0 to 1"
    )


@pytest.mark.parametrize("value", ['["train"]', '{"a": 1}', "3", "true", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("column", ["query", "prompt", "outcome", "split", "tokens", "confidence"])
def test_any_json_value_is_used_or_named(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(LEAST)[:-1] + f', "{column}": {value}}}\n')
    told = tell(path)
    assert told is None or told.startswith(f"The demonstrations cannot be used: {path}, row 1: ")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_row_is_named_by_its_place_in_the_file_whatever_is_left_out_before_it(tmp_path: Path, name: str) -> None:
    good = [LEAST | {"model": model} for model in ("m", "n", "n", "m", "n")]
    first = write_rows(tmp_path / f"0{name}", *good)
    path = write_rows(tmp_path / name, *good, LEAST | {"model": "m", "outcome": 2.0})
    for models in ([], ["m"], ["m", "n"]):
        assert f"{path}, row 6: outcome 2.0" in fail([first, path], models=models)
    assert len(load_demonstrations([first, path], models=["n"])) == 6


def test_rows_beyond_the_first_batch_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps(LEAST) + "\n"
    path.write_text(line * 70_000 + json.dumps(LEAST | {"outcome": -1}) + "\n" + line)
    assert f"{path}, row 70001: outcome -1" in fail(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize("column", ["query", "prompt", "outcome"])
def test_a_column_that_is_missing_is_named(tmp_path: Path, name: str, column: str) -> None:
    path = write_rows(tmp_path / name, {key: value for key, value in LEAST.items() if key != column})
    told = fail(path)
    assert told.startswith(str(path))
    assert f": no column {column} (got " in told


def test_a_line_that_lacks_a_column_or_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for wrong, problem in [
        ('{"query": "q"}', ":3: no column prompt, outcome (got query)"),
        ("[1]", ":3: expected a JSON object, got [1]"),
        ('{"query"', ":3: expected a JSON object: "),
        ("[" * 100_000, ":3: expected a JSON object: "),
        ("9" * 5_000, ":3: expected a JSON object: "),
    ]:
        path.write_text(f"{json.dumps(LEAST)}\n\n{wrong}\n")
        assert f"{path}{problem}" in fail(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert fail(path) == f"There are no demonstrations in {path}."
    assert fail(path, models=["m"]) == f"There are no demonstrations in {path}."


def test_a_parquet_file_without_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert save_demonstrations(path, []) == 0
    assert fail(path) == f"There are no demonstrations in {path}."
    assert fail([]) == "There are no demonstrations in no file."


@pytest.mark.parametrize("content", [b"", b"PAR1", b"query,prompt,outcome\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert fail(path).startswith(f"{path} cannot be read as Parquet: ")


def test_a_parquet_file_that_was_cut_or_damaged_is_named_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    save_demonstrations(path, ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert fail(path).startswith(f"{path} cannot be read as Parquet: ")
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        told = tell(path)
        assert told is None or str(path) in told


def test_parquet_texts_that_are_no_utf8_or_a_column_that_stands_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    columns = [wrong, pa.array(["p"]), pa.array([1.0])]
    parquet.write_table(pa.table(columns, names=["query", "prompt", "outcome"]), path)
    assert fail(path).startswith(f"{path} cannot be read as Parquet: ")
    columns = [pa.array(["q"]), pa.array(["q"]), pa.array(["p"]), pa.array([1.0])]
    parquet.write_table(pa.table(columns, names=["query", "query", "prompt", "outcome"]), path)
    assert fail(path).startswith(f"{path} cannot be read as Parquet: ")


def test_lines_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe{}\n")
    assert fail(path).startswith(f"{path} cannot be read as UTF-8 JSON lines: ")


def test_a_folder_stands_for_its_tables_in_the_order_of_their_names(tmp_path: Path) -> None:
    save_demonstrations(tmp_path / "b.parquet", ROWS[1:])
    save_demonstrations(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "notes.txt").write_text("no table")
    assert list(load_demonstrations(tmp_path)) == ROWS
    assert list(load_demonstrations([tmp_path / "b.parquet", tmp_path / "a.jsonl"])) == [*ROWS[1:], ROWS[0]]


def test_a_folder_without_tables_and_what_is_no_table_are_named(tmp_path: Path) -> None:
    assert fail(tmp_path) == f"{tmp_path} holds no table: expected .parquet or .jsonl files in it."
    (tmp_path / "a.csv").write_text("query")
    assert fail(tmp_path / "a.csv") == f"{tmp_path / 'a.csv'}: expected a .parquet or .jsonl file, or a folder of them."
    for name in ("missing.jsonl", "missing.parquet"):
        assert fail(tmp_path / name).startswith(f"{tmp_path / name} cannot be read as ")
    (tmp_path / "folder.jsonl").mkdir()
    assert fail(tmp_path / "folder.jsonl").startswith(f"{tmp_path / 'folder.jsonl'} holds no table")


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_some_models_are_read_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_demonstrations(path, ROWS)
    found = load_demonstrations(path, models=["n"])
    assert list(found) == ROWS[2:]
    assert (found.queries, found.prompts, found.models) == (("q1",), ("p2\\ \t",), ("n",))
    assert len(load_demonstrations(path, models=["n", "m"])) == 3


@pytest.mark.parametrize("models", [["x"], ["m", "x"], ["x", "n"]])
def test_a_model_without_rows_is_named_with_those_that_have_some(tmp_path: Path, models: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    save_demonstrations(path, ROWS)
    told = fail(path, models=models)
    assert told.startswith("No demonstration is of x: there are those of ")
    assert "'m'" in told
    assert "'n'" in told


def test_a_file_is_not_written_under_a_name_that_says_no_form_or_into_a_file(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationsError, match=r"expected a name that ends in \.parquet or \.jsonl"):
        save_demonstrations(tmp_path / "a.csv", ROWS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DemonstrationsError, match=r"a\.jsonl cannot be written"):
        save_demonstrations(tmp_path / "file" / "a.jsonl", ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_break_off_leave_the_former_file_as_it_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_demonstrations(path, ROWS)

    def rows() -> Any:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_demonstrations(path, rows())
    assert list(load_demonstrations(path)) == ROWS
    assert os.listdir(tmp_path) == [name]
