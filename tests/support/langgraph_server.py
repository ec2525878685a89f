"""LangGraph's own development server, as ``langgraph dev`` starts it from ``langgraph.json``."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from drpo_graph.serving.process import find_free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120
COMMAND = shutil.which("langgraph", path=str(Path(sys.executable).parent))


@contextmanager
def run_langgraph_dev(environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run the server, with this in its environment besides; gives its address."""
    port = find_free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-browser", "--no-reload"]
    assert COMMAND is not None
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "dev", *options],
            cwd=ROOT,
            env={**os.environ, "LANGSMITH_TRACING": "false", **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/ok", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"langgraph dev did not start:\n{log.read_text(errors='replace')[-3000:]}")
