"""The fake server as a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tests.support.fake_options import ServerOptions

_ROOT = Path(__file__).resolve().parents[2]


class SpawnedServer(NamedTuple):
    """A server that runs as its own process."""

    base_url: str
    pid: int


@contextmanager
def spawn_fake_server(
    responder: str,
    *,
    config: Mapping[str, object] | None = None,
    options: ServerOptions | None = None,
    timeout_s: float = 30.0,
) -> Iterator[SpawnedServer]:
    """Run the server as its own process until the block ends.

    Args:
        responder: ``module:factory``; the factory returns the ``Responder``.
        config: JSON-native keyword arguments of the factory.
        options: How the server behaves.
        timeout_s: How long it may take to start.
    """
    python_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        port_file, stderr_file = Path(folder, "url"), Path(folder, "stderr")
        command = [sys.executable, "-m", "tests.support.fake_server", "--responder", responder]
        command += ["--responder-config", json.dumps(dict(config or {})), "--port-file", str(port_file)]
        command += ["--options", json.dumps(asdict(options or ServerOptions()))]
        with stderr_file.open("wb") as stderr:
            process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "PYTHONPATH": python_path})
        try:
            deadline = time.monotonic() + timeout_s
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The fake server did not start: {stderr_file.read_text()[-2000:]}")
                time.sleep(0.01)
            yield SpawnedServer(port_file.read_text(), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
