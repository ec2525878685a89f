"""A real vLLM on the CPU, started and stopped by ``drpo serve``, and runs on it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drpo_graph.records import RunResult
from drpo_graph.serving.process import find_free_port

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2"
START_S = 420
KEY = "a-key-for-tests"

SEARCH = {
    "model": f"vllm:{MODEL}",
    "depth": 3,
    "max_depth_increase": 0,
    "beam_size": 2,
    "n_actions": 3,
    "queries_per_level": 1,
    "max_metrics": 2,
    "max_rationale_chars": 60,
    "max_prompt_chars": 160,
    "max_critique_chars": 1500,
    "max_concurrency": 8,
    "base": {"max_tokens": 32},
    "metrics": {"max_tokens": 160},
    "critic": {"max_tokens": 128},
    "optimizer": {"max_tokens": 128},
}
"""A 2x3 search of two levels, with replies that a CPU writes in seconds."""


def free_port() -> int:
    """Return a port that nobody listens on, and that nobody else is given meanwhile."""
    return find_free_port("127.0.0.1")


@dataclass
class VllmServer:
    """One server; it can be killed and started again on the same port."""

    python: str
    checkpoint: str
    folder: Path
    flags: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """What ``drpo serve`` is started with: a small cache, no hub, and a route that empties the cache."""
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_SERVER_DEV_MODE": "1", "SERVER_KEY": KEY}
        return {**os.environ, "PYTHONPATH": str(ROOT), **own}

    def start(self) -> None:
        """Start it, without waiting."""
        command = [sys.executable, "-m", "drpo_graph", "serve", self.checkpoint, "--served-model-name", MODEL]
        command += ["--python", self.python, "--port", str(self.port), "--dtype", "float32", "--timeout", str(START_S)]
        command += ["--api-key-env", "SERVER_KEY", "--log-file", str(self.folder / f"vllm-{self.port}.log")]
        log = (self.folder / f"serve-{self.port}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, *self.flags, "--", "--enforce-eager"],
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env=self.environment,
        )

    def wait(self) -> None:
        """Wait until it is ready."""
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            said = (self.folder / f"serve-{self.port}.log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)

    def kill(self) -> None:
        """Kill it as a crash would: ``drpo serve`` first, and the server with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._wait_until_gone()

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(timeout=60) == 0
            self._wait_until_gone()

    def empty_cache(self) -> None:
        """Let the server forget all prefixes."""
        root = self.base_url.removesuffix("/v1")
        request = urllib.request.Request(
            f"{root}/reset_prefix_cache", method="POST", headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + 60
        while self._is_ready() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not self._is_ready()


class Runs:
    """Runs of the small search, each a ``drpo`` process, with one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "search.json"
        self.config.write_text(json.dumps(SEARCH))
        self._place = ["--checkpoint", str(folder / "runs.sqlite"), "--display", "plain"]

    def begin(
        self, name: str, servers: list[VllmServer], *, settings: Mapping[str, object] | None = None
    ) -> subprocess.Popen[str]:
        """Start a run."""
        values = {"base_url": [server.base_url for server in servers], **(settings or {})}
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps({**SEARCH, **values}))
        return self._spawn("optimize", "--thread-id", name, "--config", str(file))

    def resume(self, name: str) -> subprocess.Popen[str]:
        """Continue a run."""
        return self._spawn("resume", name)

    def finish(self, process: subprocess.Popen[str], *, timeout_s: float = 400) -> int:
        """Return a process's exit code; what it said is in :attr:`said`."""
        self.said = process.communicate(timeout=timeout_s)[0]
        return process.returncode

    def run(self, name: str, servers: list[VllmServer], **settings: object) -> RunResult:
        """Return the result of a whole run."""
        assert self.finish(self.begin(name, servers, settings=settings)) == 0, self.said
        return self.result(name)

    def result(self, name: str) -> RunResult:
        """Return what a finished run wrote."""
        return RunResult.model_validate_json((self.folder / name / "result.json").read_text())

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the events written so far."""
        file = self.folder / name / "events.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def wait_for_calls(self, name: str, count: int, process: subprocess.Popen[str]) -> None:
        """Wait until so many calls of a run have finished."""
        while sum(event["type"] == "call_finished" for event in self.events(name)) < count:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)

    def _spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "drpo_graph", *arguments, *self._place],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
