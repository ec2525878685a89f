"""The first Ctrl-C, SIGTERM or SIGHUP drains and stores, the second stops at once; nothing is paid for twice."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import (
    SMALL,
    Drpo,
    finish,
    finished_keys,
    list_runs,
    read_result,
    serve_world,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--thread-id", "t")


def start(folder: Path, server: FakeServer, *arguments: str) -> subprocess.Popen[str]:
    """Start a run, and return when the server works on its calls."""
    num_started = len(server.log)
    process = spawn_drpo(*START, *arguments, folder=folder, environment={"OPENAI_BASE_URL": server.base_url})
    wait_for(lambda: len(server.log) > num_started or process.poll() is not None)
    return process


@pytest.fixture(autouse=True)
def hangups() -> Iterator[None]:
    """Let the runs be hung up: under nohup they would ignore it, as they should."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("number", "display"),
    [
        (signal.SIGINT, "plain"),
        pytest.param(signal.SIGTERM, "none", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "none", marks=pytest.mark.slow),
    ],
)
def test_the_first_signal_stores_the_calls_in_flight_and_resume_makes_none_of_them_again(
    number: signal.Signals, display: str, drpo: Drpo, folder: Path, slow_world: FakeServer, unbroken: RunResult
) -> None:
    before = len(slow_world.log)
    process = start(folder, slow_world, "--display", display)
    wait_for(lambda: len(slow_world.log) - before >= 12)
    process.send_signal(number)
    outcome = finish(process)
    said = outcome.out + outcome.err
    assert outcome.code == 130
    assert "finished calls are stored" in said
    assert "drpo resume t\n" in said
    assert "Traceback" not in said
    assert (outcome.out if display == "none" else outcome.err) == ""
    assert list_runs(drpo) == {"t": "interrupted"}
    log = slow_world.log[before:]
    # What was begun was finished: no call was dropped on the way.
    assert sum(entry["event"] == "start" for entry in log) == sum(entry.get("status") == 200 for entry in log)
    assert drpo("resume", "t", "--display", "none").code == 0
    assert read_result(folder / "drpo_runs") == unbroken


@pytest.mark.slow
def test_no_finished_call_is_made_twice_over_an_interrupt(
    drpo: Drpo, folder: Path, slow_world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(slow_world.log)
    process = start(folder, slow_world, "--display", "jsonl")
    wait_for(lambda: len(slow_world.log) - before >= 20)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130
    assert outcome.events()[-1].type == "run_stopped"
    assert outcome.err.count("\n") == 1
    monkeypatch.setenv("OPENAI_BASE_URL", slow_world.base_url)
    assert drpo("resume", "t", "--display", "none").code == 0
    keys = [entry["key"] for entry in slow_world.log[before:] if entry.get("status") == 200]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_the_second_signal_stops_at_once(drpo: Drpo, folder: Path, unbroken: RunResult) -> None:
    with serve_world(latency_s=60) as frozen:
        process = start(folder, frozen, "--display", "plain")
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        outcome = finish(process, timeout_s=10)
    assert outcome.code == 130
    assert len(outcome.err_lines) == 1
    assert "drpo resume t" in outcome.err
    # The process is gone, and the list says so.
    assert list_runs(drpo) == {"t": "interrupted"}
    assert drpo("resume", "t", "--display", "none").code == 0
    assert read_result(folder / "drpo_runs") == unbroken


@pytest.mark.slow
def test_a_killed_run_is_listed_as_interrupted_and_resumes(
    drpo: Drpo, folder: Path, slow_world: FakeServer, unbroken: RunResult
) -> None:
    before = len(finished_keys(slow_world))
    process = start(folder, slow_world, "--display", "none")
    wait_for(lambda: len(finished_keys(slow_world)) > before)
    process.kill()
    process.communicate()
    assert list_runs(drpo) == {"t": "interrupted"}
    assert "Its process has gone" in drpo("show", "t").out
    assert drpo("resume", "t", "--display", "none").code == 0
    assert read_result(folder / "drpo_runs") == unbroken


@pytest.mark.slow
def test_a_closed_terminal_stops_no_run_under_nohup(folder: Path, slow_world: FakeServer, unbroken: RunResult) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(folder, slow_world, "--display", "none")
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 0
    assert read_result(folder / "drpo_runs") == unbroken
