"""A key is in no byte that a run writes, whatever the servers that it is sent to do with it."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.command import SMALL, Drpo, finish, serve, spawn_drpo
from tests.support.fake_server import Reply, ServerOptions, request_key
from tests.support.oracle import build_responder

CANARY = "sk-canary-7d0f4c91e2aa53"
PIECE = CANARY[:12].encode()
"""Half a key is found, too."""
START = ("optimize", *SMALL, "--depth", "2", "--thread-id", "t", "--logging-level", "DEBUG")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path


def assert_nowhere(folder: Path, *said: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [str(path) for path in files if PIECE in path.read_bytes()] == []
    assert all(PIECE.decode() not in one for one in said)


def build_echoing_responder() -> Callable[[dict[str, object]], Reply]:
    """Return a responder that errs once or twice per request with the key in its words, then has it in its reply."""
    own, arrivals = build_responder(seed=3), Counter[str]()

    def respond(body: dict[str, object]) -> Reply:
        key = request_key(body)
        arrivals[key] += 1
        if arrivals[key] == 1 and int(key, 16) % 3:
            words = f"{'x' * (int(key[:3], 16) % 300)} Authorization: Bearer {CANARY} is not liked"
            return Reply(status=500 if int(key, 16) % 2 else 429, error_message=words, headers={"Retry-After": "0.01"})
        reply = own(body)
        return Reply(
            [text.replace("answer", f"answer {CANARY}").replace("You", f"You {CANARY}") for text in reply.texts]
        )

    return respond


@pytest.mark.slow
def test_a_run_through_faults_and_replies_that_repeat_the_key_holds_it_nowhere(folder: Path) -> None:
    with serve(build_echoing_responder(), ServerOptions(models=["world"], api_key=CANARY)) as server:
        place = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": CANARY}
        outcome = finish(spawn_drpo(*START, "--display", "jsonl", "--debug", folder=folder, environment=place))
    assert outcome.code == 0, outcome.err
    kinds = {event.type for event in outcome.events()}
    assert {"call_retried", "run_finished"} <= kinds
    assert sum(path.suffix == ".sqlite" for path in folder.rglob("*")) == 1
    assert_nowhere(folder, outcome.out, outcome.err)
    assert b"*" * len(CANARY) in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


class Echo(BaseHTTPRequestHandler):
    """Answers everything in one way, with the request's headers in it."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, kind, form = self.server.answer  # type: ignore[attr-defined]
        body = form.replace("KEY", self.headers.get("Authorization", "")).encode()
        self.send_response(status, f"see {self.headers.get('Authorization')}")
        self.send_header("Content-Type", kind)
        self.send_header("X-Echo", self.headers.get("Authorization", ""))
        self.send_header("Content-Length", str(len(body) + (500 if kind == "cut" else 0)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815  # The name is the server's.

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.answer = (200, "text/plain", "")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


ANSWERS = {
    "refused": (401, "application/json", '{"error": {"message": "Incorrect API key provided: KEY"}}'),
    "bad request": (400, "application/json", '{"error": {"message": "KEY", "param": "KEY", "code": "KEY"}}'),
    "error page": (502, "text/html", "<html>" + "KEY " * 40 + "</html>"),
    "no JSON": (200, "text/html", "<html>KEY</html>"),
    "broken JSON": (200, "application/json", '{"KEY": '),
    "no object": (200, "application/json", '["KEY"]'),
    "no completion": (200, "application/json", '{"padding": "' + "p" * 150 + '", "error": "KEY"}'),
    "key in a name": (200, "application/json", '{"choices": [{"KEY": "KEY"}], "data": [{"id": "KEY"}]}'),
    "cut": (200, "cut", '{"choices": "KEY'),
}


@pytest.mark.parametrize("probe", ["true", "false"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_run_that_fails_on_a_server_that_repeats_the_key_holds_it_nowhere(
    drpo: Drpo, folder: Path, echo: ThreadingHTTPServer, answer: str, probe: str
) -> None:
    echo.answer = ANSWERS[answer]  # type: ignore[attr-defined]
    place = ("--base-url", f"http://127.0.0.1:{echo.server_address[1]}/v1")
    quick = ("--set", "max_retries=0", "--set", f"probe={probe}", "--display", "none")
    outcome = drpo(*START, *place, *quick, is_debug=True)
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    shown = [drpo("runs"), drpo("show", "t"), drpo("show", "t", "--json"), drpo("events", "t")]
    assert [one.code for one in shown] == [0, 0, 0, 0]
    checked = drpo("models", "check", "openai:m", *place, "--set", "max_retries=0", "--no-samples", "--json")
    assert_nowhere(
        folder, outcome.out, outcome.err, checked.out, checked.err, *(f"{one.out}{one.err}" for one in shown)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--base-url", f"https://user:{CANARY}@host/v1"),
        ("--base-url", f"https://host/v1?key={CANARY}"),
        ("--set", f'critic.extra_body={{"extra_headers": {{"Authorization": "Bearer {CANARY}"}}}}'),
        ("--set", f'base.extra_body={{"api_key": "{CANARY}"}}'),
        ("--set", f"critic.api_key={CANARY}"),
        ("--api-key-env", CANARY),
    ],
)
@pytest.mark.parametrize("is_debug", [False, True])
def test_a_key_given_where_it_would_be_stored_is_refused_in_words_without_it(
    drpo: Drpo, folder: Path, arguments: tuple[str, ...], is_debug: bool
) -> None:
    outcome = drpo(*START, *arguments, is_debug=is_debug)
    assert outcome.code == 2
    assert not (folder / "drpo_runs").exists()
    assert_nowhere(folder, outcome.out, outcome.err)


def test_a_key_in_the_environment_s_url_is_refused_in_words_without_it(
    drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://user:{CANARY}@host/v1")
    outcome = drpo(*START)
    assert (outcome.code, outcome.out) == (2, "")
    assert "must not hold a password" in outcome.err
    assert_nowhere(folder, outcome.err)


@pytest.mark.slow
def test_no_process_has_the_key_on_its_command_line(folder: Path) -> None:
    with serve(build_responder(seed=3), ServerOptions(models=["world"], api_key=CANARY)) as server:
        place = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": CANARY}
        process = spawn_drpo(*START, "--display", "none", folder=folder, environment=place)
        seen = 0
        while process.poll() is None:
            lines = [_read_command(int(name)) for name in os.listdir("/proc") if name.isdigit()]
            assert not any(PIECE in line for line in lines)
            seen += any(b"drpo_graph" in line for line in lines)
    assert finish(process).code == 0
    assert seen > 0


def _read_command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""  # It has ended meanwhile.
