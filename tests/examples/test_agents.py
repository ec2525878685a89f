"""The examples with agents, on a fake server and on the embedded model."""

import datetime
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drpo_graph.agents import PromptSlot
from drpo_graph.settings.layers import build_settings
from tests.docs.test_inference import RESULT
from tests.support.command import KEY, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.oracle import role_of
from tests.support.scripts import load_module

ROOT = Path(__file__).resolve().parents[2]
BETTER = "You are a patient assistant who asks for what is missing."
SMALL = {
    "depth": 2,
    "max_depth_increase": 0,
    "beam_size": 1,
    "n_actions": 1,
    "max_metrics": 1,
    "max_rationale_chars": 100,
    "max_prompt_chars": 300,
    "max_critique_chars": 1000,
    "max_concurrency": 4,
    "probe": False,
    "max_time": 60,
    "base": {"max_tokens": 32},
    "metrics": {"max_tokens": 160},
    "critic": {"max_tokens": 128},
    "optimizer": {"max_tokens": 160},
}


def load(name: str) -> ModuleType:
    return load_module(ROOT / "examples" / f"{name}.py")


@pytest.fixture(scope="module")
def aligned() -> ModuleType:
    return load("aligned_agent")


@pytest.fixture(scope="module")
def improving() -> ModuleType:
    return load("self_improving_agent")


def respond(body: dict[str, object]) -> Reply:
    """Answer with the system prompt, judge an answer by it, and rewrite every prompt to the better one."""
    messages = body["messages"]
    assert isinstance(messages, list)
    role = role_of(messages)
    if role == "optimizer":
        return Reply([json.dumps({"analysis": "a", "new_system_prompt": BETTER})])
    if role == "metrics":
        return Reply([json.dumps({"reasoning": "r", "metrics": ["Clarity"]})])
    if role == "critic":
        score = 4 if BETTER in messages[-1]["content"] else 2
        names = re.findall(r"^- (Clarity|Complaint): ", messages[-1]["content"], re.MULTILINE)
        return Reply([json.dumps({"scores": [{"metric": one, "rationale": "r", "score": score} for one in names]})])
    return Reply([messages[0]["content"]])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(respond, ServerOptions(log_bodies=True)) as server:
        yield server


def test_aligned_agent_asks_with_prompt_examples_and_its_own_instructions(
    aligned: ModuleType, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(RESULT.model_dump_json())
    arguments = ["What is rain?", "--model", "openai:m", "--base-url", server.base_url]
    assert aligned.main([*arguments, "--run", str(tmp_path / "result.json"), "--num-icl", "2"]) == 0
    expected = f"{RESULT.system_prompt}\n\n{aligned.INSTRUCTIONS}"
    assert capsys.readouterr().out == f"{expected}\n"
    sent = messages_of([entry["body"] for entry in server.log if entry["event"] == "start"][-1])
    assert sent is not None
    assert [one["role"] for one in sent] == ["system", *["user", "assistant"] * 2, "user"]


def test_aligned_agent_tells_in_one_line_what_is_wrong(aligned: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert aligned.main(["What is rain?", "--model", "rain"]) == 1
    assert capsys.readouterr().err.startswith("stopped: ")


def test_demo_learns_from_the_day_and_swaps_the_prompt_while_it_serves(
    improving: ModuleType, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    place = ["--model", "openai:m", "--base-url", server.base_url, "--folder", str(tmp_path / "agent")]
    assert improving.main(["demo", *place, "--config", str(tmp_path / "small.json")]) == 0
    out = capsys.readouterr().out
    assert out.count("[version 1]") == 3
    assert "on 2 failures of" in out
    assert "version 2 is in use" in out
    # Each failure is judged on its user's complaint too; what went well is not.
    asked = [str(entry["body"]) for entry in server.log if entry["event"] == "start"]
    judged = [one for one in asked if "# Metrics to choose from" not in one and "fault of a former one" in one]
    assert {comment for _, good, comment in improving.DAY if not good and any(comment in one for one in judged)} == {
        "too hard to follow",
        "it did not ask where I live",
    }
    # The server that was running all the time answers with the new prompt.
    assert f"[version 2] {improving.DAY[0][0]}\n  {BETTER}\nin use: {BETTER}" in out
    # The job learns from yesterday, on which nothing happened.
    assert improving.main(["optimize", *place]) == 0
    assert "nothing to learn" in capsys.readouterr().out
    files = [path for path in (tmp_path / "agent").iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_demo_without_a_model_server_ends_in_one_line(
    improving: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda body: Reply(status=401, error_message="no"), ServerOptions()) as server:
        place = ["--model", "openai:m", "--base-url", server.base_url, "--folder", str(tmp_path)]
        assert improving.main(["demo", *place]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped: the server's answer is {")
    assert "401" in line


def test_failures_of_a_day_are_its_badly_rated_questions(improving: ModuleType, tmp_path: Path) -> None:
    journal, today = improving.Journal(tmp_path / "journal.sqlite"), datetime.date.today()
    ids = [journal.note(question, "Yes.", prompt_version=1) for question in ("A?", "B?", "C?", "A?")]
    for request_id, good in zip(ids, (False, True, False, False), strict=True):
        assert journal.rate(improving.Feedback(id=request_id, good=good))
    assert journal.rate(improving.Feedback(id=ids[2], good=True))
    assert not journal.rate(improving.Feedback(id="unknown", good=True))
    assert [one.text for one in journal.rated(today, good=False)] == ["A?"]
    assert journal.rate(improving.Feedback(id=ids[0], good=False, comment="too long"))
    assert [one.tags for one in journal.rated(today, good=False)] == [("too long",)]
    assert [one.text for one in journal.rated(today, good=True)] == ["B?", "C?"]
    assert journal.rated(today - datetime.timedelta(days=1), good=False) == []


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/chat", b'{"question": "Why?"}', "application/json", 200),
        ("/chat", b'{"question": "Why?"}', "text/plain", 415),
        ("/chat", b"{", "application/json", 400),
        ("/feedback", b'{"id": "x", "good": true}', "application/json", 404),
        ("/nowhere", b"{}", "application/json", 404),
        ("/prompt", None, "", 200),
        ("/nowhere", None, "", 404),
    ],
)
def test_server_answers_what_it_can_and_says_what_it_cannot(
    improving: ModuleType,
    server: FakeServer,
    tmp_path: Path,
    path: str,
    body: bytes | None,
    content_type: str,
    status: int,
) -> None:
    settings = build_settings({"model": "openai:m", "base_url": server.base_url, "probe": False})
    slot = PromptSlot(tmp_path / "s.json", initial="Help.")
    assistant = improving.Assistant(settings, slot, improving.Journal(tmp_path / "journal.sqlite"))
    listening = improving.make_server(assistant, 0)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    request = urllib.request.Request(
        f"http://127.0.0.1:{listening.server_port}{path}", body, {"Content-Type": content_type}
    )
    answer: Any
    try:
        with urllib.request.urlopen(request) as reply:
            found, answer = reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        found, answer = error.code, json.load(error)
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
    assert found == status, answer
    assert isinstance(answer, dict)


@pytest.mark.local
@pytest.mark.timeout(300)
def test_aligned_agent_answers_with_the_embedded_model(aligned: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert aligned.main(["What is rain?", "--model", "local:smollm2", "--max-tokens", "32", "--num-icl", "1"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.local
@pytest.mark.timeout(600)
def test_a_day_is_played_with_the_embedded_model(
    improving: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    arguments = ["--model", "local:smollm2", "--config", str(tmp_path / "small.json"), "--folder", str(tmp_path)]
    assert improving.main(["demo", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("[version 1]") >= 3
    assert "Run 2" in out or "the job has ended early" in out
    assert f"in use: {PromptSlot(tmp_path / 'prompt.json').current.text}" in out
