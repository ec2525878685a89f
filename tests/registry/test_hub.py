"""The hub form is what LangSmith's own client sends, seen by a server in the hub's place."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from langchain_core.load import load
from langchain_core.messages import SystemMessage
from langsmith import Client

from drpo_graph.registry import RegisteredPrompt, render_prompt

REPO = {
    **dict.fromkeys(("repo_handle", "id", "tenant_id", "full_name", "owner"), "r"),
    **dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00Z"),
    **dict.fromkeys(("num_likes", "num_downloads", "num_views", "num_commits"), 0),
    "is_public": False,
    "is_archived": False,
    "tags": [],
}
SETTINGS = {"id": "1", "display_name": "d", "created_at": "2026-01-01T00:00:00Z", "tenant_handle": "me"}
COMMIT = {"commit": {"commit_hash": "c", "id": "00000000-0000-0000-0000-000000000000"}, "commits": []}


class Hub(ThreadingHTTPServer):
    """Takes one prompt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent: dict[str, dict[str, object]] = {}
        """Bodies by path."""

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        if path.startswith("/settings"):
            return 200, SETTINGS
        if path.startswith("/commits"):
            return 200, COMMIT
        return (200, {"repo": REPO}) if "/repos" in self.sent else (404, {"detail": "There is none."})


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hub)
        code, body = self.server.answer(self.path)
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        assert isinstance(self.server, Hub)
        length = int(self.headers["Content-Length"])
        self.server.sent[self.path.rstrip("/")] = json.loads(self.rfile.read(length))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_langsmith_s_client_sends_is_the_manifest_and_what_stands_beside_it(hub: Hub) -> None:
    prompt = RegisteredPrompt(model="Org/M 1", system_prompt="Use {braces}.", run="t", licence="MIT")
    form = json.loads(render_prompt(prompt, "hub"))
    client = Client(api_url=f"http://127.0.0.1:{hub.server_port}", api_key="k", auto_batch_tracing=False)
    client.push_prompt(**form)
    created = hub.sent["/repos"]
    handle = str(created["repo_handle"])
    committed = hub.sent[f"/commits/-/{handle}"]
    assert handle.startswith("drpo-org-m-1-")
    assert "licence: MIT" in str(created["readme"])
    assert created["is_public"] is False
    assert committed["manifest"] == form["object"]
    template = load(committed["manifest"], allowed_objects="core")
    assert template.invoke({"messages": []}).to_messages() == [SystemMessage("Use {braces}.")]
