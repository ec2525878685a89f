"""``drpo import traces``: a dataset of what an app was asked, and every record that is left out is told."""

import json
import stat
from pathlib import Path

import pytest

from drpo_graph.data.datasets import load_queries
from tests.data.test_traces import KEY, langfuse, langsmith, score
from tests.support.command import Drpo, assert_one_line

OUTPUT = Path("queries.jsonl")


def write(*records: object) -> Path:
    path = Path("t.jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_traces_become_a_dataset(drpo: Drpo) -> None:
    path = write(
        langfuse("Why?", scores=[score(1)]), langfuse("How?"), langfuse("Why?"), langsmith("x", parent_run_id="r")
    )
    outcome = drpo("import", "traces", path, "--output", OUTPUT)
    told = "queries.jsonl: 2 queries from 4 records; left out: 1 inside of other runs, 1 asked before\n"
    assert (outcome.code, outcome.out, outcome.err) == (0, told, "")
    assert [(one.text, one.tags) for one in load_queries(OUTPUT)] == [("Why?", ("rated:1",)), ("How?", ())]
    assert stat.S_IMODE(OUTPUT.stat().st_mode) == 0o600
    outcome = drpo("import", "traces", path, "-o", OUTPUT, "--max-rating", "2")
    assert "1 query from 4 records" in outcome.out
    assert_one_line(
        drpo("import", "traces", path, "-o", OUTPUT, "--failed-only"), 2, "no query", "3 not failed or rated so"
    )
    assert len(load_queries(OUTPUT)) == 1


def test_records_that_cannot_be_used_are_told_up_to_a_bound(drpo: Drpo) -> None:
    outcome = drpo("import", "traces", write(langfuse("Why?"), *[{"a\x1b[2J": 1}] * 25), "--output", OUTPUT)
    assert outcome.code == 1
    assert len(outcome.err_lines) == 22
    assert outcome.err_lines[0].startswith("t.jsonl:2: ")
    assert outcome.err_lines[-2:] == ["... and 5 more", "error: 25 of 26 records were not imported."]
    assert "\x1b" not in outcome.err
    assert len(load_queries(OUTPUT)) == 1


def test_key_is_in_no_file_and_no_message(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    outcome = drpo("import", "traces", write(langfuse(f"Is it {KEY}?"), langfuse("Why?")), "--output", OUTPUT)
    assert outcome.code == 1
    assert "OPENAI_API_KEY" in outcome.err
    assert KEY not in outcome.err + outcome.out + OUTPUT.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["traces", "t.jsonl"], "--output"),
        (["traces", "t.jsonl", "-o", "./t.jsonl"], "is the file that is read"),
        (["traces", "none.jsonl", "-o", "q.jsonl"], "none.jsonl"),
        (["traces", "t.jsonl", "-o", "q.jsonl", "--model", "m"], "--model"),
        (["traces", "t.jsonl", "q.jsonl"], "got 3"),
        (["t.jsonl", "q.jsonl"], "got 2"),
        (["t.jsonl", "--failed-only"], "--failed-only"),
        # One word alone is what it always was: the name of a file or folder.
        (["traces"], "traces"),
    ],
)
def test_what_cannot_be_is_one_line(drpo: Drpo, arguments: list[str], told: str) -> None:
    write(langfuse("Why?"))
    assert_one_line(drpo("import", *arguments), 2, told)
    assert not Path("q.jsonl").exists()


def test_folder_of_that_name_is_imported_as_before(drpo: Drpo) -> None:
    Path("traces").mkdir()
    Path("traces/output.txt").write_text("Be kind.\n")
    assert drpo("import", "traces").code == 0
    assert drpo("prompts", "traces").out == "Be kind.\n"
