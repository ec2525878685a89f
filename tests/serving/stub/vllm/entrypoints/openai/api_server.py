"""Stands for vLLM's server: takes its flags, listens where it is told, wants its key, and fails as it is told.

The environment tells: ``STUB_RECORD`` (a file that argv, key and process ids are written to), ``STUB_DELAY_S`` (before
it listens), ``STUB_FAIL`` (a text to end with), ``STUB_DIES_WITH`` (a file whose disappearance ends it),
``STUB_STUBBORN`` (SIGTERM is ignored), ``STUB_WORKER`` (a child process, as vLLM's engine is one), ``STUB_LATENCY_S``
(the synthetic world answers, each call after so long).
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def parse() -> argparse.Namespace:
    """Return what of vLLM's flags matters here."""
    parser = argparse.ArgumentParser(prog="api_server.py")
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key")
    given, _ = parser.parse_known_args()
    return given


class Handler(BaseHTTPRequestHandler):
    """Answers ``/health`` to everyone and ``/v1/models`` to who has the key."""

    name = key = ""

    def do_GET(self) -> None:
        """Answer."""
        is_known = self.headers.get("Authorization") == f"Bearer {self.key}"
        if self.path == "/health":
            self._answer(200, {})
        elif self.path == "/v1/models" and is_known:
            self._answer(200, {"object": "list", "data": [{"id": self.name, "object": "model"}]})
        else:
            self._answer(401, {"error": "Unauthorized"})

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def watch(path: Path) -> None:
    """End this process, as if killed for memory, when a file is gone."""
    while path.exists():
        time.sleep(0.02)
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


async def serve_world(given: argparse.Namespace, key: str) -> None:
    """Answer as the synthetic world does, until SIGTERM."""
    from aiohttp import web

    from tests.support.fake_server import FakeServer, Latency, ServerOptions
    from tests.support.oracle import build_responder

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    latency = Latency(float(os.environ["STUB_LATENCY_S"]))
    name = given.served_model_name or given.model
    options = ServerOptions(
        port=given.port, api_key=key, models=[name], latency=latency, log_path=os.environ.get("STUB_CALLS")
    )
    server = FakeServer(build_responder(seed=3), options)
    server._runner.app.router.add_get("/health", health)
    async with server:
        print("INFO: Application startup complete.", flush=True)
        await stopped.wait()
    print("INFO: Application shutdown complete.", flush=True)


def main() -> None:
    """Serve until killed."""
    given, key, pids = parse(), os.environ.get("VLLM_API_KEY", ""), [os.getpid(), os.getppid()]
    if os.environ.get("STUB_STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.environ.get("STUB_WORKER"):
        pids.append(subprocess.Popen([sys.executable, "-S", "-c", _WORKER]).pid)
    if record := os.environ.get("STUB_RECORD"):
        names = ("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "HTTPS_PROXY")
        environment = {name: os.environ.get(name) for name in names}
        content = {"argv": sys.argv[1:], "key": key, "pids": pids, "environment": environment}
        Path(f"{record}.new").write_text(json.dumps(content))
        os.replace(f"{record}.new", record)
    for number in range(30):
        print(f"INFO: loading part {number}", flush=True)
    if text := os.environ.get("STUB_FAIL"):
        print(text, file=sys.stderr, flush=True)
        sys.exit(1)
    time.sleep(float(os.environ.get("STUB_DELAY_S", "0")))
    if path := os.environ.get("STUB_DIES_WITH"):
        threading.Thread(target=watch, args=(Path(path),), daemon=True).start()
    if "STUB_LATENCY_S" in os.environ:
        asyncio.run(serve_world(given, key))
        return
    Handler.name, Handler.key = given.served_model_name or given.model, key
    ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
