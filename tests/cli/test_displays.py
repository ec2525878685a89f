"""What goes where: events for programs alone on stdout, errors on stderr, a reader that leaves is no error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import KEY, ROOT, SMALL, Drpo, list_runs
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--thread-id", "t")


def test_jsonl_holds_nothing_but_events_and_is_what_the_log_holds(drpo: Drpo, folder: Path) -> None:
    outcome = drpo(*START, "--display", "jsonl")
    events = outcome.events()
    assert (outcome.code, outcome.err) == (0, "")
    assert (events[0].type, events[-1].type) == ("run_started", "run_finished")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (folder / "drpo_runs" / "t" / "events.jsonl").read_text() == outcome.out
    assert drpo("events", "t").out == outcome.out


def test_none_shows_nothing_and_errors_still_reach_stderr(drpo: Drpo) -> None:
    outcome = drpo(*START, "--display", "none")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert drpo(*START, "--display", "none").err.startswith("error: ")


def test_plain_names_the_result_the_files_and_the_next_commands(drpo: Drpo, folder: Path) -> None:
    out = drpo(*START, "--display", "plain", "--checkpoint", "my runs.sqlite").out
    assert out.startswith("started  t  levels 2  beam 1 x 2  queries 180, 2 per level  models openai:world\n")
    assert "\x1b" not in out
    assert (folder / "t" / "best_prompt.txt").read_text() in out.replace("\n ", "\n")
    named = [line.split()[-1] for line in out.splitlines() if "t/" in line and line.endswith((".txt", ".json", "l"))]
    assert len(named) == 5
    assert all((folder / name).is_file() for name in named)
    assert "drpo show t --checkpoint 'my runs.sqlite'" in out


def test_rich_without_a_terminal_is_plain(drpo: Drpo) -> None:
    outcome = drpo(*START, "--display", "rich")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "\x1b" not in outcome.out
    assert "level 2/2" in outcome.out


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_disturb_the_run(drpo: Drpo, folder: Path, world: FakeServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_BASE_URL": world.base_url, "OPENAI_API_KEY": KEY}
    command = f"{sys.executable} -m drpo_graph {' '.join(START)} --display jsonl | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    first, code = done.stdout.splitlines()
    assert '"run_started"' in first
    assert (code, done.stderr) == ("0", "")
    assert list_runs(drpo) == {"t": "done"}
    reading = f"{sys.executable} -m drpo_graph show t --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", reading], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n0\n", "")


@pytest.mark.slow
def test_an_error_as_a_process_has_the_code_of_its_kind(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "drpo_graph", "optimize", "--model", "openai:world", "--depth", "1"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = subprocess.run([*command, "--debug"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
