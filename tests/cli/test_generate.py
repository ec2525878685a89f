"""``drpo generate``: a response from the command line, with the prompt of one's choice."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.registry import GENERAL_PROMPT
from tests.support.command import KEY, SMALL, Drpo, assert_one_line, finished_keys, read_result, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions

MODEL = ("--model", "openai:world")
OWN = ("--system-prompt", "Be brief.")


def last_messages(server: FakeServer) -> list[dict[str, object]]:
    found = messages_of([entry["body"] for entry in server.log if entry["event"] == "start"][-1])
    assert found is not None
    return found


@pytest.fixture
def speaker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that says what the test wants, and keeps the requests."""
    options = ServerOptions(api_key=KEY, log_bodies=True)
    with serve(lambda body: Reply(["Rain is water."]), options) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


def test_response_is_streamed_to_stdout(drpo: Drpo, speaker: FakeServer) -> None:
    done = drpo("generate", "What is rain?", *MODEL, *OWN)
    assert (done.code, done.out, done.err) == (0, "Rain is water.\n", "")
    body = [entry["body"] for entry in speaker.log if entry["event"] == "start"][-1]
    assert body["stream"] is True
    assert [one["content"] for one in last_messages(speaker)] == ["Be brief.", "What is rain?"]


def test_json_tells_where_the_response_comes_from(drpo: Drpo, speaker: FakeServer) -> None:
    told = json.loads(drpo("generate", "What is rain?", *MODEL, "--json").out)
    assert told["response"] == "Rain is water."
    assert (told["system_prompt"], told["system_prompt_source"]) == (GENERAL_PROMPT, "general")
    assert (told["model"], told["examples"], told["finish_reason"]) == ("openai:world", [], "stop")
    assert told["usage"]["output_tokens"] == 3


def test_query_is_read_from_stdin(drpo: Drpo, speaker: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is\nrain?\n"))
    assert drpo("generate", "-", *MODEL, *OWN).code == 0
    assert last_messages(speaker)[-1]["content"] == "What is\nrain?"


def test_query_that_is_no_text_is_told(drpo: Drpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xff"), encoding="utf-8"))
    assert_one_line(drpo("generate", "-", *MODEL, *OWN), 2, "UTF-8")


def test_half_a_character_in_a_query_does_no_harm(drpo: Drpo, speaker: FakeServer) -> None:
    assert drpo("generate", "What is \udcff?", *MODEL, *OWN).code == 0
    assert last_messages(speaker)[-1]["content"] == "What is \N{REPLACEMENT CHARACTER}?"


def test_sampling_is_what_the_flags_say(drpo: Drpo, speaker: FakeServer, folder: Path) -> None:
    (folder / "p.txt").write_text("From a file.\n")
    flags = ("--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "7", "--stop", "A", "--stop", "B")
    assert drpo("generate", "x", *MODEL, "--system-prompt", "@p.txt", *flags).code == 0
    body = [entry["body"] for entry in speaker.log if entry["event"] == "start"][-1]
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0.5, 0.9, 7)
    assert body["stop"] == ["A", "B"]
    assert last_messages(speaker)[0]["content"] == "From a file."


@pytest.mark.parametrize("is_json", [False, True])
def test_terminal_codes_of_the_model_do_not_reach_the_terminal(drpo: Drpo, speaker: FakeServer, is_json: bool) -> None:
    speaker.responder = lambda body: Reply(["a\x1b]0;title\x07b\x1b[31mc\u202e\n\td\x9b2Je\x1b"])
    out = drpo("generate", "x", *MODEL, *OWN, *(["--json"] if is_json else [])).out
    assert all(char == "\n" or char.isprintable() for char in out), out
    assert is_json or out == "abc\n    de\n"


def test_prompt_of_a_run_is_asked_as_the_run_asked_it(drpo: Drpo, world: FakeServer, folder: Path) -> None:
    (folder / "q.txt").write_text("What is rain?\nWhy is the sky blue?\n")
    assert drpo("optimize", "q.txt", *SMALL, "--thread-id", "t", "--display", "none").code == 0
    searched = set(finished_keys(world))
    told = json.loads(drpo("generate", "What is rain?", "--run", "t", "--json").out)
    assert told["system_prompt"] == read_result(folder / "drpo_runs").system_prompt
    assert told["system_prompt_source"] == "run t"
    assert finished_keys(world)[-1] in searched


def test_examples_of_a_file_are_shown_and_told(drpo: Drpo, speaker: FakeServer, folder: Path) -> None:
    (folder / "e.json").write_text(json.dumps({f"Query {place}?": f"Response {place}." for place in range(4)}))
    found = ("--num-icl", "2", "--icl-examples", "e.json", "--embeddings", "openai:e")
    told = json.loads(drpo("generate", "Query 3?", *MODEL, *OWN, *found, "--json").out)
    assert told["examples"][0] == "Query 3?"
    assert [one["content"] for one in last_messages(speaker)[1:3]] == ["Query 3?", "Response 3."]
    assert len(last_messages(speaker)) == 6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x"], ["--model"]),
        ([" ", *MODEL], ["blank"]),
        (["x", *MODEL, *OWN, "--run", "t"], ["--system-prompt and --run"]),
        (["x", *MODEL, "--num-icl", "6"], ["0 to 5"]),
        (["x", *MODEL, "--prompt", "m"], ["--registry"]),
        (["x", *MODEL, "--registry", "missing"], ["missing", "no such folder"]),
        (["x", *MODEL, "--temperature", "9"], ["temperature"]),
        (["x", *MODEL, "--icl-examples", "e.json"], ["--icl-examples", "--num-icl"]),
        (["x", *MODEL, "--set", "ret_icl=true", "--set", "k=8"], ["8 ICL examples", "--num-icl"]),
    ],
)
def test_wrong_usage_is_told_in_one_line(drpo: Drpo, arguments: list[str], parts: list[str]) -> None:
    assert_one_line(drpo("generate", *arguments), 2, *parts)
