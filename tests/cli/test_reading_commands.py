"""``drpo runs``, ``show`` and ``events``: before, during and after a run, from another process."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from drpo_graph.cli.pages.run import print_run
from drpo_graph.events.schema import RunFinished, RunStarted
from drpo_graph.records import Candidate, RunResult
from drpo_graph.runs.reading import StoredRun
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.run_list import RunRecord
from tests.support.command import KEY, SMALL, Drpo, finish, list_runs, spawn_drpo, wait_for
from tests.support.fake_server import FakeServer
from tests.support.hostile import HOSTILE, is_inert

START = ("optimize", *SMALL, "--thread-id", "t")


def test_without_runs_the_list_says_how_to_start_one(drpo: Drpo, folder: Path) -> None:
    assert drpo("runs").out == "No runs in drpo_runs/checkpoints.sqlite. `drpo optimize` starts one.\n"
    assert json.loads(drpo("runs", "--json").out) == []
    assert not list(folder.iterdir())


def test_the_newest_run_comes_first(drpo: Drpo) -> None:
    for name in ("b", "a", "c"):
        assert drpo("optimize", *SMALL, "--depth", "2", "--thread-id", name, "--display", "none").code == 0
    assert list(list_runs(drpo)) == ["c", "a", "b"]
    rows = drpo("runs").out.splitlines()
    assert [row.split()[0] for row in rows] == ["thread", "c", "a", "b"]
    assert rows[1].split()[1] == "done"


def test_every_run_has_one_line_at_every_width(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "openai:a-model-with-a-name-that-is-much-longer-than-a-column"
    for name in ("first", "second"):
        assert drpo("optimize", *SMALL, "--critic-model", long, "--thread-id", name, "--display", "none").code == 1
    whole = drpo("runs").out.splitlines()
    assert [len(whole), *(row.split()[0] for row in whole)] == [3, "thread", "second", "first"]
    assert all(long.partition(":")[2] in row and row == row.rstrip() for row in whole[1:])
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        rows = re.sub(r"\x1b\[\d*m", "", drpo("runs").out).splitlines()
        assert len(rows) == 3
        assert max(map(len, rows)) <= columns


def test_list_is_cut_to_a_number_and_a_status(drpo: Drpo) -> None:
    for name, depth in (("a", "2"), ("b", "2")):
        assert drpo("optimize", *SMALL, "--depth", depth, "--thread-id", name, "--display", "none").code == 0
    assert drpo(*START, "--max-calls", "5", "--display", "none").code == 3
    assert list(list_runs(drpo, "--limit", "2")) == ["t", "b"]
    assert list(list_runs(drpo, "--status", "done")) == ["b", "a"]
    assert list(list_runs(drpo, "--status", "done", "--limit", "1")) == ["b"]
    assert list(list_runs(drpo, "--status", "done", "--status", "interrupted")) == ["t", "b", "a"]
    assert drpo("runs", "--status", "failed").out.startswith("No failed runs in ")
    assert drpo("runs", "--status", "fine").code == 2
    assert drpo("runs", "--limit", "0").code == 2


def test_show_begins_with_what_run_it_is(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert drpo(*START, "--seed", "5", "--set", "history_window=4", "--max-calls", "9", "--display", "none").code == 3
    for status in ("interrupted", "done"):
        name, models, settings = drpo("show", "t").out.splitlines()[:3]
        assert re.fullmatch(
            rf"t  {status}  is a search; started \d{{4}}-\d\d-\d\d \d\d:\d\d, last change .*, worked \d+s", name
        )
        assert models == "models    openai:world"
        assert settings == (
            "settings  depth 3, beam_size 1, n_actions 2, queries_per_level 2, seed 5, history_window 4"
        )
        assert drpo("resume", "t", "--max-calls", "900", "--display", "none").code == 0


def test_resumed_run_s_time_is_the_run_s(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drpo(*START, "--max-calls", "9", "--display", "none").code == 3
    with sqlite3.connect("drpo_runs/checkpoints.sqlite") as database:
        # As if its process had worked for an hour.
        found = database.execute("SELECT prefix, key, value FROM store WHERE prefix LIKE '%budget%'").fetchall()
        assert len(found) == 1
        prefix, key, value = found[0]
        kept = {name: one for name, one in json.loads(value).items() if name != "drpo_sum"}
        changed = json.dumps({**kept, "elapsed_s": 3600.0})
        database.execute("UPDATE store SET value = ? WHERE prefix = ? AND key = ?", (changed, prefix, key))
    resumed = drpo("resume", "t", "--max-calls", "900", "--display", "jsonl")
    assert resumed.code == 0
    started = next(one for one in resumed.events() if isinstance(one, RunStarted))
    finished = resumed.events()[-1]
    assert isinstance(finished, RunFinished)
    assert started.former_s == 3600
    assert 3600 <= finished.elapsed_s < 7200
    monkeypatch.setenv("COLUMNS", "200")
    assert "worked 1h00m" in drpo("show", "t").out
    assert "1h00m" in drpo("events", "t", "--display", "plain").out


@pytest.mark.parametrize(
    "words",
    [
        ("show", ""),
        ("resume", "fir"),
        ("events", "f"),
        ("fork", ""),
        ("review", ""),
        ("export", ""),
        ("prune", "x", "fi"),
        ("show", "--checkpoint", "drpo_runs/checkpoints.sqlite", "f"),
        ("generate", "--run", "f"),
        ("oirl", "from-run", "fir"),
    ],
    ids=" ".join,
)
def test_shell_completes_names_of_runs(drpo: Drpo, folder: Path, words: tuple[str, ...]) -> None:
    assert drpo("optimize", *SMALL, "--depth", "2", "--thread-id", "first", "--display", "none").code == 0
    asked = {"_DRPO_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("drpo", *words)), "COMP_CWORD": str(len(words))}
    said = finish(spawn_drpo(folder=folder, environment=asked))
    assert said.out.split() == ["first"], said.err


def test_shell_completes_nothing_where_nothing_is_and_says_nothing(folder: Path) -> None:
    (folder / "broken.sqlite").write_text("no database")
    for place in ("none.sqlite", "broken.sqlite", "mysql://x"):
        words = f"drpo show --checkpoint {place} "
        asked = {"_DRPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
        said = finish(spawn_drpo(folder=folder, environment=asked))
        assert (said.out.strip(), said.err) == ("", "")


def test_show_keeps_its_numbers_whole_and_cuts_only_prompts(
    drpo: Drpo, monkeypatch: pytest.MonkeyPatch, unbroken: RunResult
) -> None:
    assert drpo(*START, "--display", "none").code == 0
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = drpo("show", "t").out
        path = out[out.index("path to the prompt") : out.index("─ prompt found")].splitlines()
        rows = [line.rstrip().split(maxsplit=3) for line in path[1:] if line.strip()]
        assert rows[0] == ["candidate", "from", "reward", "prompt"]
        assert tuple(row[0] for row in rows[1:]) == unbroken.trace
        assert all(row[1] in ("initial", "rewrite", "kept") and re.fullmatch(r"\d\.\d\d", row[2]) for row in rows[1:])
        assert max(len(line) for line in path) <= columns
        assert " ".join(unbroken.system_prompt.split()) in " ".join(out.split())


def test_show_as_json_holds_run_result_beams_and_tree(drpo: Drpo, unbroken: RunResult) -> None:
    assert drpo(*START, "--display", "none").code == 0
    shown = json.loads(drpo("show", "t", "--json").out)
    assert RunRecord.model_validate(shown["run"]).status == "done"
    assert RunResult.model_validate(shown["result"]) == unbroken
    assert tuple(shown["beams"][-1]) == unbroken.beam
    assert {one["id"] for one in shown["tree"]} >= set(unbroken.trace)


@pytest.mark.slow
def test_a_run_can_be_looked_at_and_followed_while_it_works(
    drpo: Drpo, folder: Path, world: FakeServer, slow_world: FakeServer
) -> None:
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    run = spawn_drpo(*START, "--depth", "4", "--display", "none", folder=folder, environment=environment)
    log = folder / "drpo_runs" / "t" / "events.jsonl"
    wait_for(lambda: log.exists() and '"level_finished"' in log.read_text())
    follower = spawn_drpo("events", "t", "--follow", "--display", "plain", folder=folder, environment=environment)
    assert list_runs(drpo) == {"t": "running"}
    shown = json.loads(drpo("show", "t", "--json").out)
    assert (shown["run"]["status"], shown["result"]) == ("running", None)
    assert shown["beams"][0] == ["0"]
    page = drpo("show", "t").out
    assert "best prompt so far:" in page
    assert "drpo events t --follow" in page
    assert finish(run).code == 0
    followed = finish(follower)
    assert (followed.code, followed.err) == (0, "")
    assert followed.out.startswith("started  t")
    assert "\ndone  t" in followed.out
    assert drpo("events", "t", "--display", "plain").out == followed.out


def test_following_ends_where_nobody_works_on_the_run(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--display", "none").code == 0
    log = folder / "drpo_runs" / "t" / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:5], "half a li\n", "\n", *lines[5:9], lines[9][:20]]))
    outcome = drpo("events", "t", "--follow")
    assert outcome.code == 0
    assert outcome.out == "".join(lines[:9])
    assert len(outcome.err_lines) == 1
    assert "skipped a line" in outcome.err


def test_show_prints_only_inert_text(folder: Path) -> None:
    root = Candidate(id="0", parent_id=None, depth=0, prompt=HOSTILE, origin="initial", reward=None)
    record = RunRecord(
        thread_id="t",
        status="failed",
        created_at=0,
        updated_at=0,
        settings=Settings(initial_prompt=HOSTILE),
        log_dir=None,
        message=HOSTILE,
    )
    with (folder / "page").open("w+", encoding="utf-8") as page:
        print_run(StoredRun(record, None, (root,), [["0"]]), page, place="")
        page.seek(0)
        assert is_inert(page.read())
