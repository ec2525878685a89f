"""Run the ``drpo`` command: in this process where only its words matter, as a process where the process matters."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from drpo_graph.events.schema import Event, parse_event
from drpo_graph.records import RunResult
from tests.support.fake_server import FakeServer, Latency, Responder, ServerOptions
from tests.support.oracle import build_responder

ROOT = Path(__file__).resolve().parents[2]
KEY = "key-for-tests"
MODEL = ("--model", "openai:world")
SMALL = (*MODEL, "--depth", "3", "--n-actions", "2", "--beam-size", "1", "--queries-per-level", "2")
"""A run of 34 calls or so."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def err_lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()

    def events(self) -> list[Event]:
        """Return stdout as events; any other line fails."""
        return [parse_event(line) for line in self.out.splitlines()]


class Drpo:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, is_debug: bool = False) -> Outcome:
        """Run one command."""
        self._capsys.readouterr()
        code = _run([str(one) for one in arguments], is_debug=is_debug)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


def assert_one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on stderr says what is wrong, nothing else is said, and the exit code is right."""
    assert outcome.out == ""
    assert len(outcome.err_lines) == 1, outcome.err
    line = outcome.err_lines[0]
    missing = [part for part in parts if part not in line]
    assert not missing, f"{missing} not in: {line}"
    assert "a bug" not in line
    assert "Traceback" not in line
    assert outcome.code == code, line


def spawn_drpo(*arguments: str | Path, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "drpo_graph", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 100) -> Outcome:
    """Wait for a spawned command; one that hangs is killed and fails."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 75) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextmanager
def serve_world(*, latency_s: float = 0.0) -> Iterator[FakeServer]:
    """Run a server that knows one model, wants a key, and is so many seconds away."""
    options = ServerOptions(models=["world"], api_key=KEY, latency=Latency(latency_s))
    with serve(build_responder(seed=3), options) as server:
        yield server


def enter(folder: Path, patch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """Make a folder the working folder, in an environment that leads to a server and no further."""
    patch.chdir(folder)
    patch.setenv("OPENAI_API_KEY", KEY)
    patch.setenv("OPENAI_BASE_URL", world.base_url)
    patch.setenv("COLUMNS", "100")
    for name in ("VLLM_BASE_URL", "FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        patch.delenv(name, raising=False)
    return folder


@contextmanager
def serve(responder: Responder, options: ServerOptions) -> Iterator[FakeServer]:
    """Run a fake server on a thread of this process until the block ends."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    server = FakeServer(responder, options)

    async def live() -> None:
        async with server:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def finished_keys(server: FakeServer) -> list[str]:
    """Return the key of every request that the server answered with 200, in order."""
    return [entry["key"] for entry in list(server.log) if entry["event"] == "end" and entry["status"] == 200]


def list_runs(drpo: Drpo, *arguments: str | Path) -> dict[str, str]:
    """Return status by thread id, as ``drpo runs --json`` says it."""
    return {run["thread_id"]: run["status"] for run in json.loads(drpo("runs", "--json", *arguments).out)}


def read_result(runs: Path, thread_id: str = "t") -> RunResult:
    """Return the result in a run's folder."""
    return RunResult.model_validate_json((runs / thread_id / "result.json").read_bytes())
