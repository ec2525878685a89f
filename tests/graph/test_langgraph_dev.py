"""The graph under LangGraph's own development server, as ``langgraph dev`` starts it from ``langgraph.json``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.events.schema import RunFinished, parse_event
from drpo_graph.serving.process import find_free_port
from tests.support.fake_server import spawn_fake_server

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120
COMMAND = shutil.which("langgraph", path=str(Path(sys.executable).parent))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="the extra `server` (langgraph-cli[inmem]) is not installed"),
]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start ``langgraph dev`` with the synthetic world for a model; yield its address."""
    port = find_free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("langgraph") / "dev.log"
    with (
        spawn_fake_server("tests.support.oracle:build_responder", config={"seed": 0}) as fake,
        log.open("wb") as output,
    ):
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": fake.base_url,
            "OPENAI_API_KEY": "unused",
            "DRPO_MODEL": "openai:fake",
            "LANGSMITH_TRACING": "false",
        }
        options = ["--host", "127.0.0.1", "--port", str(port), "--no-browser", "--no-reload"]
        assert COMMAND is not None
        process = subprocess.Popen(
            [COMMAND, "dev", *options], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def test_search_runs_with_context_as_json(server_url: str) -> None:
    output = json.loads(_post(f"{server_url}/runs/wait", _request()))
    assert output["system_prompt"]
    assert output["result"]["status"] == "done"
    assert output["result"]["usage_by_role"]["critic"]["calls"] > 0


def test_events_reach_a_client_from_inside_the_subgraphs(server_url: str) -> None:
    request = {**_request(), "stream_mode": ["custom"], "stream_subgraphs": True}
    lines = _post(f"{server_url}/runs/stream", request).decode().splitlines()
    payloads = [
        line.removeprefix("data: ") for line in lines if line.startswith("data: ") and '"schema_version"' in line
    ]
    events = [parse_event(payload) for payload in payloads]
    assert isinstance(events[-1], RunFinished)
    assert {"run_started", "rollout_scored", "call_finished", "level_finished"} <= {event.type for event in events}


def _request() -> dict[str, object]:
    return {
        "assistant_id": "drpo",
        "input": {"queries": ["What is rust?", "How do I bake bread?"]},
        "context": {"depth": 2, "queries_per_level": 2},
    }


def _post(url: str, body: dict[str, object]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        content: bytes = reply.read()
    return content


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/ok", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"langgraph dev did not start:\n{log.read_text(errors='replace')[-3000:]}")
