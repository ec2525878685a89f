"""What models and servers write neither moves a cursor nor forges a line, wherever it is shown or logged."""

import json
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.events.log import EventLog
from drpo_graph.events.schema import Warned, parse_event
from drpo_graph.runs.logs import InertFormatter, log_event
from drpo_graph.safety.terminal import inert_json
from tests.support.command import KEY, SMALL, Drpo, enter, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.oracle import build_responder

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]\x9b31m\u202e\u2028<script>alert(1)</script>\r\nfake line"
START = ("optimize", *SMALL, "--depth", "2", "--thread-id", "t")


def is_inert(text: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Cf") for char in text if char not in "\n\t")


@pytest.fixture(scope="module")
def world() -> Iterator[FakeServer]:
    own = build_responder(seed=3)

    def respond(body: dict[str, object]) -> Reply:
        reply = own(body)
        return Reply([text.replace(". ", f"{HOSTILE}. ", 1) if text[:1] != "{" else text for text in reply.texts])

    with serve(respond, ServerOptions(models=["world"], api_key=KEY)) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    return enter(tmp_path, monkeypatch, world)


@pytest.mark.parametrize("display", ["plain", "jsonl"])
def test_everything_that_a_run_and_its_commands_print_is_inert(drpo: Drpo, folder: Path, display: str) -> None:
    hostile_prompt = f"You are a helpful assistant. {HOSTILE}"
    run = drpo(*START, "--display", display, "--initial-prompt", hostile_prompt)
    assert run.code == 0
    said = [
        run,
        drpo("show", "t"),
        drpo("show", "t", "--json"),
        drpo("events", "t"),
        drpo("runs"),
        drpo("runs", "--json"),
    ]
    assert all(is_inert(one.out + one.err) for one in said)
    written = [path for path in (folder / "drpo_runs" / "t").rglob("*") if path.suffix in (".json", ".jsonl")]
    written += [folder / "drpo_runs" / "t" / name for name in ("log.txt", "args.txt")]
    assert all(is_inert(path.read_text("utf-8")) for path in written)
    result = json.loads((folder / "drpo_runs" / "t" / "result.json").read_text("utf-8"))
    assert result["initial_prompt"] == hostile_prompt


@pytest.mark.parametrize("is_debug", [False, True])
def test_a_server_s_error_is_inert_on_the_terminal_and_in_the_log(drpo: Drpo, folder: Path, is_debug: bool) -> None:
    with serve(lambda body: Reply(status=401, error_message=HOSTILE), ServerOptions()) as server:
        for extra in ((), ("--set", "probe=false")):
            outcome = drpo(
                *START[:-1],
                f"t{len(extra)}",
                "--base-url",
                server.base_url,
                "--display",
                "none",
                *extra,
                is_debug=is_debug,
            )
            assert outcome.code == 1
            assert "fake line" in outcome.err
            assert is_inert(outcome.err)
            assert is_debug or len(outcome.err_lines) == 1
            assert is_inert(drpo("show", f"t{len(extra)}").out)
    assert all(is_inert(path.read_text("utf-8")) for path in folder.rglob("log.txt"))


def test_a_record_is_one_line_of_the_log_and_its_traceback_is_inert() -> None:
    formatter = InertFormatter("%(levelname)s %(message)s")
    record = logging.makeLogRecord({"msg": "it said %s", "args": (HOSTILE,), "levelname": "WARNING"})
    assert formatter.format(record) == "WARNING it said [bold red] <script>alert(1)</script> fake line"
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "m", "exc_info": (ValueError, error, error.__traceback__)})
    assert is_inert(formatter.format(record))
    assert "Traceback" in formatter.format(record)


def test_a_warning_without_a_run_folder_is_inert(caplog: pytest.LogCaptureFixture) -> None:
    log_event(Warned(run_id="t", message=HOSTILE))
    assert all(is_inert(record.getMessage()) for record in caplog.records)
    assert caplog.records


@given(st.text(max_size=60))
def test_inert_json_says_the_same_to_a_program_and_nothing_to_a_terminal(text: str) -> None:
    line = json.dumps({"x": text}, ensure_ascii=False)
    shown = inert_json(line)
    assert json.loads(shown) == {"x": text}
    assert not any(code in shown for code in ("\x7f", "\x9b", "\u202e", "\u2028", "\u200b", "\ufeff", "\U000e0041"))


def test_a_stored_event_says_what_was_meant(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(Warned(run_id="t", message=HOSTILE))
    log.close()
    content = (tmp_path / "events.jsonl").read_text("utf-8")
    assert is_inert(content)
    event = parse_event(content)
    assert isinstance(event, Warned)
    assert event.message == HOSTILE
