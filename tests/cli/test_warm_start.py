"""``--warm-start``: a run begins with what was found, and its optimizer sees what was tried in vain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drpo_graph.records import RunResult
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from tests.support.command import KEY, MODEL, Drpo, assert_one_line, enter, finished_keys, list_runs, read_result, serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder

SEARCH = (*MODEL, "--depth", "3", "--n-actions", "3", "--beam-size", "2", "--queries-per-level", "1")
QUIET = ("--display", "none")
TRIED = "Rewrites that a former run tried."


@pytest.fixture
def open_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that remembers what it was asked."""
    options = ServerOptions(models=["world"], api_key=KEY, log_bodies=True)
    with serve(build_responder(seed=3), options) as server:
        enter(folder, monkeypatch, server)
        yield server


@pytest.fixture
def former(drpo: Drpo, folder: Path, open_world: FakeServer) -> RunResult:
    """A finished run, with rewrites that did worse."""
    assert drpo("optimize", *SEARCH, "--thread-id", "old", *QUIET).code == 0
    return read_result(folder / "drpo_runs", "old")


def rejected_of(drpo: Drpo, thread_id: str) -> set[str]:
    tree = {one["id"]: one for one in json.loads(drpo("show", thread_id, "--json").out)["tree"]}
    rewrites = [one for one in tree.values() if one["origin"] == "rewrite"]
    at, led = json.loads(drpo("show", thread_id, "--json").out)["result"]["candidate_id"], set()
    while at is not None:
        led.add(tree[at]["prompt"])
        at = tree[at]["parent_id"]
    return {one["prompt"] for one in rewrites if one["reward"] < tree[one["parent_id"]]["reward"]} - led


def rewrite_requests(world: FakeServer, *, since: int) -> list[str]:
    bodies: list[Any] = [one["body"] for one in list(world.log)[since:] if one["event"] == "start" and "body" in one]
    texts = [body["messages"][0]["content"] for body in bodies if "messages" in body]
    return [text for text in texts if text.startswith("You improve the system prompt")]


def test_former_run_gives_its_prompt_and_its_rejected_rewrites(
    drpo: Drpo, folder: Path, open_world: FakeServer, former: RunResult
) -> None:
    rejected = rejected_of(drpo, "old")
    assert rejected
    assert not any(TRIED in text for text in rewrite_requests(open_world, since=0))
    since = len(open_world.log)
    outcome = drpo("optimize", *SEARCH, "--warm-start", "old", "--thread-id", "new", *QUIET)
    assert (outcome.code, outcome.err) == (0, "")
    result = read_result(folder / "drpo_runs", "new")
    assert result.initial_prompt == former.system_prompt
    assert result.fingerprints["data"] != former.fingerprints["data"]
    assert result.fingerprints["prompts"] == former.fingerprints["prompts"]
    requests = rewrite_requests(open_world, since=since)
    assert requests
    for text in requests:
        assert TRIED in text
        assert all(f">\n{prompt}\n</prompt-" in text for prompt in rejected)
    assert "warm start from old" in drpo("show", "new").out


def test_resume_needs_nothing_of_the_former_run(
    drpo: Drpo, folder: Path, open_world: FakeServer, former: RunResult
) -> None:
    start = ("optimize", *SEARCH, "--warm-start", "old", *QUIET)
    assert drpo(*start, "--thread-id", "whole").code == 0
    assert drpo(*start, "--thread-id", "cut", "--max-calls", "8").code == 3
    assert drpo("prune", "old", "--keep", "nothing", "--yes").code == 0
    assert drpo("resume", "cut", "--max-calls", "500", *QUIET).code == 0
    whole, cut = (read_result(folder / "drpo_runs", one) for one in ("whole", "cut"))
    assert cut == whole.model_copy(update={"thread_id": "cut"})
    # A fork shows its optimizer the same.
    num_calls = len(finished_keys(open_world))
    assert drpo("fork", "cut", "--level", "1", "--thread-id", "f", *QUIET).code == 0
    assert len(finished_keys(open_world)) == num_calls


def test_file_gives_only_its_prompt_as_an_initial_prompt_would(drpo: Drpo, folder: Path, former: RunResult) -> None:
    (folder / "prompt.txt").write_text("Be kind.\n")
    assert drpo("optimize", *SEARCH, "--warm-start", "prompt.txt", "--thread-id", "a", *QUIET).code == 0
    assert drpo("optimize", *SEARCH, "--initial-prompt", "Be kind.", "--thread-id", "b", *QUIET).code == 0
    warm, plain = (read_result(folder / "drpo_runs", one) for one in "ab")
    assert warm == plain.model_copy(update={"thread_id": "a"})
    assert warm.fingerprints["data"] == former.fingerprints["data"]


def test_kept_prompt_of_a_model_is_begun_with(drpo: Drpo, folder: Path, open_world: FakeServer) -> None:
    PromptRegistry(folder / "drpo_prompts").add(RegisteredPrompt(model="org/m", system_prompt="Be kind."))
    assert drpo("optimize", *SEARCH, "--warm-start", "org/m", "--thread-id", "a", *QUIET).code == 0
    assert read_result(folder / "drpo_runs", "a").initial_prompt == "Be kind."
    assert "warm start from the prompt of org/m" in drpo("show", "a").out


def test_what_cannot_be_started_from_is_refused(drpo: Drpo, folder: Path) -> None:
    (folder / "blank.txt").write_text(" \n")
    start = ("optimize", *SEARCH, *QUIET)
    assert_one_line(drpo(*start, "--warm-start", "nobody"), 2, "--warm-start nobody", "expected")
    assert_one_line(drpo(*start, "--warm-start", "blank.txt"), 2, "blank.txt", "it is blank")
    (folder / "prompt.txt").write_text("Be kind.\n")
    both = drpo(*start, "--warm-start", "prompt.txt", "--initial-prompt", "Be brief.")
    assert_one_line(both, 2, "prompt.txt", "not both")
    assert list_runs(drpo) == {}
