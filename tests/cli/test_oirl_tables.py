"""``drpo oirl import`` and ``drpo oirl inspect``."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from drpo_graph.cli.commands.oirl.import_logs import import_logs_command
from drpo_graph.cli.commands.oirl.inspect_table import inspect_command
from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstration
from drpo_graph.oirl.splits import find_leak, held_out_prompts
from drpo_graph.oirl.tables import load_demonstrations, save_demonstrations
from tests.oirl.published.folders import (
    QUESTIONS,
    write_held_out,
    write_labels,
    write_queries,
    write_release,
)
from tests.support.hostile import HOSTILE, is_inert

APP = typer.Typer()
APP.command("import")(import_logs_command)
APP.command("inspect")(inspect_command)


def run(*arguments: str | Path) -> Result:
    outcome = CliRunner().invoke(APP, [str(one) for one in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_labels_become_demonstrations(name: str) -> None:
    outcome = run("import", write_labels(Path("labels")), "-o", name, "--model", "some/model")
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines() == [
        f"12 demonstrations in {name}: 6 train, 6 test",
        f"next: drpo oirl inspect {name}",
    ]
    found = load_demonstrations(Path(name))
    assert (len(found), found.models) == (12, ("some/model",))
    assert found.prompt_names == ("nan", "CoT", "gpt4_0")


def test_what_is_left_out_or_odd_is_told_on_standard_error() -> None:
    release = write_release(Path("copy"))
    queries = write_queries(Path("queries.jsonl"), (*QUESTIONS, "Six?"))
    outcome = run("import", release, "--queries", queries, "-o", "out.jsonl")
    notes = outcome.stderr.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert any("1 prompts have answers and no text" in line for line in notes)
    assert any("1 of 6 queries were not logged" in line for line in notes)
    assert any("with fewer than 30 trials" in line for line in notes)


def test_a_leaking_split_is_told_and_replaced_on_demand() -> None:
    release = write_release(Path("copy"))
    queries = write_queries(Path("queries.jsonl"), (*QUESTIONS[:3], "ONE?", QUESTIONS[4]))
    given = ("import", release, "--queries", queries, "--prompts", write_held_out(Path("held-out.json")))
    outcome = run(*given, "-o", "leaks.jsonl")
    assert "note: 1 of 2 test queries stand on the training side too (3 of 6 test rows)" in outcome.stderr
    outcome = run(*given, "-o", "clean.jsonl", "--test-share", "0.5", "--seed", "1")
    assert "on the training side too" not in outcome.stderr
    found = load_demonstrations(Path("clean.jsonl"))
    assert find_leak(found) is None
    assert set(held_out_prompts(found)) <= {2}
    assert not any(row.split == "train" for row in found if row.prompt_name == "gpt4_0")


def test_logs_that_do_not_fit_leave_no_file() -> None:
    write_labels(Path("labels"), row_query=[0, 1, 2, 3, 9])
    with pytest.raises(DemonstrationsError, match=r"row_query in labels\.npz: 9"):
        run("import", "labels", "-o", "out.jsonl")
    assert not os.path.lexists("out.jsonl")


def save_rows(name: str, rows: list[Demonstration]) -> str:
    save_demonstrations(Path(name), rows)
    return name


def test_a_table_is_shown_in_numbers() -> None:
    rows = [
        Demonstration("a?", "Think.", 1.0, model="m", split="train", tokens=10.0, prompt_name="think"),
        Demonstration("b?", "Think.", 0.0, model="m", split="train", tokens=20.0, prompt_name="think"),
        Demonstration("A?", "Look.", 1.0, model="m", split="test", confidence=0.5),
    ]
    outcome = run("inspect", save_rows("some.jsonl", rows))
    lines = outcome.stdout.splitlines()
    assert lines[:4] == [
        "3 rows: 3 queries, 2 prompts",
        "train 2 rows, 2 queries, mean 50.0%; test 1 rows, 1 queries, mean 100.0%",
        "rows by model: m 3",
        "known besides: tokens in 2 rows, self-critic in 1 rows",
    ]
    table = [line.split() for line in lines[5:8]]
    assert table == [
        ["prompt", "train", "mean", "test", "mean", "tokens", "text"],
        ["think", "2", "50.0%", "-", "-", "15", "Think."],
        ["Look.", "-", "-", "1", "100.0%", "-", "Look."],
    ]
    assert "note: 1 of 1 test queries stand on the training side too (1 of 1 test rows): split by query." in lines


def test_long_prompts_are_cut_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [Demonstration("a?", f"{name} " * 60, 1.0, split="train") for name in ("Think", "Look")]
    rows += [row._replace(query="b?", split="test") for row in rows]
    lines = run("inspect", save_rows("some.jsonl", rows)).stdout.splitlines()
    assert lines[4].split() == ["prompt", "train", "mean", "test", "mean", "text"]
    assert all(len(line) <= 60 and line.rstrip().endswith("…") for line in lines[5:7])
    assert all("  1  100.0%     1  100.0%  " in line for line in lines[5:7])


def test_a_table_is_shown_as_json() -> None:
    outcome = run("inspect", save_rows("some.parquet", [Demonstration("a?", "Think.", 0.5)] * 2), "--json")
    said = json.loads(outcome.stdout)
    assert (said["num_rows"], said["num_queries"], said["leak"]) == (2, 1, None)
    side = {"num_rows": 2, "num_queries": 1, "mean_outcome": 0.5}
    assert said["by_side"] == {"": side}
    assert said["prompts"] == [{"name": "Think.", "text": "Think.", "by_side": {"": side}, "mean_tokens": None}]
    assert len(said["checks"]) == 4


def test_the_rows_of_one_model_are_shown_alone() -> None:
    rows = [Demonstration("a?", "p", 1.0, model=model) for model in ("one", "two", "two")]
    assert run("inspect", save_rows("some.jsonl", rows), "--model", "two").stdout.startswith("2 rows: 1 queries")
    with pytest.raises(DemonstrationsError, match="No demonstration is of three"):
        run("inspect", "some.jsonl", "--model", "three")


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    row = Demonstration(f"q{HOSTILE}", f"p{HOSTILE}", 1.0, model=f"m{HOSTILE}", prompt_name=f"n{HOSTILE}")
    rows = [row, row._replace(model=f"{HOSTILE}m", split="train"), row._replace(split="test")]
    name = save_rows("some.jsonl", rows)
    for arguments in (("inspect", name), ("inspect", name, "--json")):
        outcome = run(*arguments)
        assert outcome.stdout
        assert is_inert(outcome.stdout)
