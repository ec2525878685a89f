"""Wrong usage: one line that says what, where and what to do; exit code 2; nothing is left behind."""

from pathlib import Path

import pytest

from tests.support.command import MODEL, Drpo, assert_one_line, list_runs

OPTIMIZE = ("optimize", "--display", "plain", *MODEL)

CASES = {
    "no model given": (("optimize",), ("base model is not set", "--model", "openai:gpt-5-mini")),
    "no model for one role": (
        ("optimize", "--base-model", "openai:a", "--critic-model", "openai:a", "--optimizer-model", "openai:a"),
        ("metrics model is not set", "--metrics-model"),
    ),
    "malformed model string": (("optimize", "--model", "gpt-4o"), ("'gpt-4o'", "expected provider:model")),
    "malformed base URL": ((*OPTIMIZE, "--base-url", "localhost:8000"), ("localhost:8000",)),
    "depth 0": ((*OPTIMIZE, "--depth", "0"), ("depth", "greater than or equal to 2", "got 0")),
    "depth 1": ((*OPTIMIZE, "--depth", "1"), ("depth", "greater than or equal to 2", "got 1")),
    "depth that is no number": (
        (*OPTIMIZE, "--depth", "ten"),
        ("--depth", "valid int", "drpo optimize --help"),
    ),
    "beam 0": ((*OPTIMIZE, "--beam-size", "0"), ("beam_size", "greater than or equal to 1", "got 0")),
    "negative temperature": (
        (*OPTIMIZE, "--temperature", "-0.5"),
        ("optimizer.temperature", "greater than or equal to 0", "got -0.5"),
    ),
    "more queries than there are": ((*OPTIMIZE, "--num-queries", "100000"), ("100000", "ask for 1 to")),
    "unknown --set name": ((*OPTIMIZE, "--set", "beam_sise=3"), ("beam_sise", "no such setting", "'beam_size'")),
    "unknown --set field": (
        (*OPTIMIZE, "--set", "critic.max_token=3"),
        ("critic.max_token", "no such setting", "'critic.max_tokens'"),
    ),
    "--set without a value": ((*OPTIMIZE, "--set", "depth"), ("--set depth", "NAME=VALUE")),
    "compat contradicted": (
        (*OPTIMIZE, "--compat", "drpo", "--queries-per-level", "3"),
        ("queries_per_level=3", "compat='drpo'"),
    ),
    "prompt file that does not exist": (
        (*OPTIMIZE, "--initial-prompt", "@nowhere.txt"),
        ("nowhere.txt", "No such file", "after '@'"),
    ),
    "blank prompt": ((*OPTIMIZE, "--initial-prompt", "  "), ("initial_prompt", "blank")),
    "blank prompt file": ((*OPTIMIZE, "--initial-prompt", "@blank.txt"), ("blank.txt", "blank")),
    "prompt file that is no text": ((*OPTIMIZE, "--initial-prompt", "@binary"), ("binary", "not UTF-8")),
    "missing dataset": ((*OPTIMIZE, "nowhere.jsonl"), ("nowhere.jsonl", "No such file", "give a file")),
    "empty dataset": ((*OPTIMIZE, "blank.txt"), ("blank.txt", "empty", "at least one query")),
    "malformed dataset": ((*OPTIMIZE, "bad.jsonl"), ("bad.jsonl:2: ", "not JSON", "correct or remove")),
    "folder without datasets": ((*OPTIMIZE, "empty"), ("empty", "alpaca_train.json", "give a file")),
    "two datasets with one id": ((*OPTIMIZE, "good.jsonl", "more/good.jsonl"), ("good.jsonl", "'q1'", "other ids")),
    "validation on training queries": (
        (*OPTIMIZE, "good.jsonl", "--validation", "good.jsonl"),
        ("--validation", "training queries", "'q1'"),
    ),
    "validation with ids of training queries": (
        (*OPTIMIZE, "good.jsonl", "--validation", "more/good.jsonl"),
        ("--validation", "'q1'", "other ids"),
    ),
    "missing template folder": ((*OPTIMIZE, "--templates", "nowhere"), ("nowhere",)),
    "template with an unknown placeholder": ((*OPTIMIZE, "--templates", "templates"), ("critique.md", "$nope")),
    "k 0": ((*OPTIMIZE, "--k", "0"), ("k", "greater than or equal to 1", "got 0")),
    "missing ICL examples": (
        (*OPTIMIZE, "--ret-icl", "--icl-examples", "nowhere.json"),
        ("nowhere.json", "No such file", "responses by query"),
    ),
    "malformed embeddings": (
        (*OPTIMIZE, "--ret-icl", "--embeddings", "minilm"),
        ("'minilm'", "local:all-minilm-l6-v2", "openai:NAME"),
    ),
    "missing metrics cache": ((*OPTIMIZE, "--metrics-cache", "nowhere.json"), ("nowhere.json", "there is no file")),
    "missing config file": ((*OPTIMIZE, "--config", "nowhere.toml"), ("nowhere.toml", "No such file")),
    "malformed config file": ((*OPTIMIZE, "--config", "malformed.toml"), ("malformed.toml", "line 1")),
    "config file with an unknown key": (
        (*OPTIMIZE, "--config", "unknown.toml"),
        ("unknown.toml", "dept", "no such setting", "'depth'"),
    ),
    "config file with a bad value": ((*OPTIMIZE, "--config", "bad.json"), ("bad.json", "depth", "got 'deep'")),
    "thread id with a path": ((*OPTIMIZE, "--thread-id", "../evil"), ("'../evil'", "letters, digits")),
    "thread id that begins with a dot": ((*OPTIMIZE, "--thread-id", ".hidden"), ("'.hidden'", "letters, digits")),
    "blank thread id": ((*OPTIMIZE, "--thread-id", ""), ("''", "letters, digits")),
    "unknown option": ((*OPTIMIZE, "--dept", "3"), ("--dept", "--depth", "drpo optimize --help")),
    "option without its value": (("optimize", "--depth"), ("--depth", "argument")),
    "unknown display": ((*OPTIMIZE, "--display", "neon"), ("--display", "neon", "plain")),
    "unknown command": (("optimise",), ("optimise", "drpo --help")),
    "no thread": (("show",), ("THREAD", "drpo show --help")),
    "resume of a path": (("resume", "../evil"), ("'../evil'", "letters, digits")),
}


@pytest.fixture(autouse=True)
def files(folder: Path) -> set[Path]:
    """Right and wrong inputs; returns what the folder holds then."""
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "binary").write_bytes(b"\xff\xfe\x00prompt")
    (folder / "good.jsonl").write_text('{"id": "q1", "text": "one"}\n{"id": "q2", "text": "two"}\n')
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"text": "two"\n')
    (folder / "empty").mkdir()
    (folder / "more").mkdir()
    (folder / "more" / "good.jsonl").write_text('{"id": "q1", "text": "three"}\n')
    (folder / "templates").mkdir()
    (folder / "templates" / "critique.md").write_text("Score $nope")
    (folder / "malformed.toml").write_text("depth = = 3\n")
    (folder / "unknown.toml").write_text("dept = 3\n")
    (folder / "bad.json").write_text('{"depth": "deep"}')
    return set(folder.rglob("*"))


@pytest.mark.parametrize(("arguments", "parts"), CASES.values(), ids=CASES.keys())
def test_wrong_usage_is_told_in_one_line_and_leaves_nothing_behind(
    arguments: tuple[str, ...], parts: tuple[str, ...], drpo: Drpo, folder: Path, files: set[Path]
) -> None:
    assert_one_line(drpo(*arguments), 2, *parts)
    left = {path.relative_to(folder) for path in set(folder.rglob("*")) - files}
    assert not left
    assert list_runs(drpo) == {}


def test_several_problems_get_a_line_each(drpo: Drpo, folder: Path) -> None:
    (folder / "worse.jsonl").write_text('{"text": ""}\n{"text": 3}\n')
    outcome = drpo(*OPTIMIZE, "worse.jsonl")
    assert outcome.code == 2
    assert [line.partition(": ")[0] for line in outcome.err_lines[1:]] == ["worse.jsonl:1", "worse.jsonl:2"]
    outcome = drpo(*OPTIMIZE, "--depth", "0", "--beam-size", "0")
    assert (outcome.code, len(outcome.err_lines)) == (2, 2)


def test_debug_shows_the_traceback(drpo: Drpo) -> None:
    outcome = drpo(*OPTIMIZE, "--depth", "0", is_debug=True)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert "SettingsError" in outcome.err_lines[-1]


def test_without_arguments_the_help_is_shown_and_the_code_says_usage(drpo: Drpo) -> None:
    outcome = drpo()
    assert (outcome.code, outcome.err) == (2, "")
    assert "optimize" in outcome.out
    assert drpo("--help").code == 0


@pytest.mark.parametrize("command", [("show", "gone"), ("resume", "gone"), ("events", "gone")])
def test_a_missing_checkpoint_is_said_and_not_created(command: tuple[str, ...], drpo: Drpo, folder: Path) -> None:
    assert_one_line(drpo(*command, "--checkpoint", "no.sqlite"), 1, "no.sqlite", "does not exist", "--checkpoint")
    assert not list(folder.glob("no.sqlite*"))
    assert_one_line(drpo(*command), 1, "drpo_runs/checkpoints.sqlite", "does not exist")
    assert not (folder / "drpo_runs").exists()
