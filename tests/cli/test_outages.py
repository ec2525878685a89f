"""A model server that dies in mid-run and comes back: the command waits, goes on, and pays for nothing twice."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from drpo_graph.events.schema import CallFinished, CallRetried, EndpointBack, EndpointLost, Event, parse_event
from drpo_graph.records import RunResult
from tests.support.command import KEY, SMALL, Drpo, finish, list_runs, read_result, spawn_drpo, wait_for
from tests.support.fake_process import SpawnedServer
from tests.support.fake_server import Latency, ServerOptions, read_log, spawn_fake_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

START = ("optimize", *SMALL, "--thread-id", "t", "--set", "retry_wait_s=0.05")


@contextmanager
def serve_world(log: Path, *, port: int = 0) -> Iterator[SpawnedServer]:
    """Run the world of the other command tests as a process that can be killed."""
    options = ServerOptions(models=["world"], api_key=KEY, latency=Latency(0.1), port=port, log_path=str(log))
    with spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 3}, options=options) as server:
        yield server


def num_answered(log: Path) -> int:
    return sum(entry.get("status") == 200 for entry in read_log(log)) if log.exists() else 0


def has_said(folder: Path, word: str) -> bool:
    events = folder / "drpo_runs" / "t" / "events.jsonl"
    return events.exists() and f'"{word}"' in events.read_text(encoding="utf-8")


def break_off(folder: Path, log: Path, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start a run, kill its server in the middle, and return it and the server's port as soon as it waits."""
    with serve_world(log) as server:
        port = urlsplit(server.base_url).port or 0
        environment = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY}
        process = spawn_drpo(*START, *arguments, folder=folder, environment=environment)
        wait_for(lambda: num_answered(log) >= 14)
        os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: has_said(folder, "endpoint_lost"))
    return process, port


def read_events(folder: Path) -> list[Event]:
    lines = (folder / "drpo_runs" / "t" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [parse_event(line) for line in lines]


def assert_same_but_for_the_outage(folder: Path, unbroken: RunResult) -> None:
    """Compare the results, and the failures that one counts with those that it told of, by all its processes."""
    failed = Counter(one.kind for one in read_events(folder) if isinstance(one, CallRetried))
    assert failed["connection"] > 0
    assert read_result(folder / "drpo_runs") == unbroken.model_copy(update={"failures_by_kind": dict(failed)})


def test_run_waits_for_a_server_that_is_restarted_and_ends_as_if_unbroken(folder: Path, unbroken: RunResult) -> None:
    log = folder / "requests.jsonl"
    process, port = break_off(folder, log, "--display", "plain")
    # The outage itself: what is awaited is that nothing happens in it.
    time.sleep(3)
    assert process.poll() is None
    num_before = num_answered(log)
    with serve_world(log, port=port):
        outcome = finish(process)
    assert (outcome.code, outcome.err) == (0, "")
    assert sum(line.startswith("lost http://127.0.0.1") for line in outcome.out.splitlines()) == 1
    assert sum(line.startswith("back http://127.0.0.1") for line in outcome.out.splitlines()) == 1
    assert_same_but_for_the_outage(folder, unbroken)
    events = read_events(folder)
    committed = Counter(one.key for one in events if isinstance(one, CallFinished) and not one.from_ledger)
    assert set(committed.values()) == {1}
    assert len([one for one in events if isinstance(one, EndpointLost)]) == 1
    (back,) = [one for one in events if isinstance(one, EndpointBack)]
    assert back.lost_s >= 3
    # What was answered and not committed when the server died may be asked again: at most what was on its way.
    answers = Counter(entry["key"] for entry in read_log(log) if entry.get("status") == 200)
    assert sum(answers.values()) - len(answers) <= 8
    assert num_before < sum(answers.values())


def test_outage_that_lasts_too_long_stops_and_resumes(drpo: Drpo, folder: Path, unbroken: RunResult) -> None:
    log = folder / "requests.jsonl"
    process, port = break_off(folder, log, "--display", "none", "--max-outage", "1")
    outcome = finish(process)
    assert outcome.code == 1
    assert len(outcome.err_lines) == 1
    assert "has been away for 1 s" in outcome.err
    assert "drpo resume t" in outcome.err
    assert list_runs(drpo) == {"t": "failed"}
    with serve_world(log, port=port):
        url = f"http://127.0.0.1:{port}/v1"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", url)
            assert drpo("resume", "t", "--max-outage", "30", "--display", "none").code == 0
    assert_same_but_for_the_outage(folder, unbroken)


def test_interrupt_ends_the_wait_at_once(drpo: Drpo, folder: Path, unbroken: RunResult) -> None:
    process, _ = break_off(folder, folder / "requests.jsonl", "--display", "none")
    process.send_signal(signal.SIGINT)
    outcome = finish(process, timeout_s=10)
    assert outcome.code == 130
    assert "drpo resume t" in outcome.err
    assert drpo("resume", "t", "--display", "none").code == 0
    assert_same_but_for_the_outage(folder, unbroken)
