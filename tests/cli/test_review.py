"""``--approve`` and ``drpo review``: a pause that outlives its process, and the decisions that end it."""

import io
import json
import os
import pty
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from drpo_graph.cli.pages.review import ask_decision
from drpo_graph.events.schema import RunStopped
from drpo_graph.search.reviews import ReviewRequest, read_decision
from drpo_graph.settings.settings import Settings
from tests.support.command import (
    MODEL,
    ROOT,
    Drpo,
    Outcome,
    assert_one_line,
    finish,
    finished_keys,
    list_runs,
    read_result,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer

SEARCH = (*MODEL, "--depth", "3", "--n-actions", "3", "--beam-size", "2", "--queries-per-level", "2", "--seed", "5")
QUIET = ("--display", "none")
EDIT = "You are an assistant whose answers Ada has improved."
ADA = ("--author", "Ada")


@pytest.fixture
def waiting(drpo: Drpo) -> Outcome:
    """A run that waits after its first level."""
    return drpo("optimize", *SEARCH, "--thread-id", "t", "--approve", "--display", "plain")


def question(drpo: Drpo) -> dict[str, object]:
    return json.loads(drpo("review", "t", "--json").out)


def test_run_that_waits_says_so_and_how_to_go_on(drpo: Drpo, folder: Path, waiting: Outcome) -> None:
    assert waiting.code == 4
    lines = waiting.out.splitlines()
    assert "waiting: Level 1 waits for a decision about 1.0.1, 1.0.2." in lines
    assert lines[-1] == "review with: drpo review t"
    assert list_runs(drpo)["t"] == "waiting"
    assert "drpo review t" in drpo("show", "t").out
    assert not (folder / "drpo_runs" / "t" / "result.json").exists()


def test_review_shows_each_candidate_against_its_parent(drpo: Drpo, waiting: Outcome) -> None:
    shown = drpo("review", "t")
    assert shown.code == 0
    assert "1.0.1  reward" in shown.out
    assert "rewrite of 0" in shown.out
    assert any(line.startswith("+ ") for line in shown.out.splitlines())
    assert shown.out.splitlines()[-1].startswith("decide with: drpo review t --approve")
    asked = question(drpo)
    assert (asked["level"], asked["is_last"]) == (1, False)
    assert list_runs(drpo)["t"] == "waiting"


def test_approved_run_ends_as_one_without_reviews(drpo: Drpo, folder: Path, waiting: Outcome) -> None:
    assert drpo("review", "t", "--approve", *ADA, *QUIET).code == 4
    assert drpo("review", "t", "--approve", *ADA, *QUIET).code == 0
    reviewed = read_result(folder / "drpo_runs")
    assert drpo("optimize", *SEARCH, "--thread-id", "u", *QUIET).code == 0
    names = {"thread_id"}
    assert read_result(folder / "drpo_runs", "u").model_dump(exclude=names) == reviewed.model_dump(exclude=names)


def test_decisions_are_carried_out_and_kept(drpo: Drpo, folder: Path, waiting: Outcome) -> None:
    (folder / "edit.txt").write_text(f"{EDIT}\n")
    decision = ("--veto", "1.0.2", "--edit", "1.0.1=@edit.txt", "--note", "warmer")
    outcome = drpo("review", "t", *decision, *ADA, "--display", "plain")
    assert outcome.code == 4
    assert "review  level 1: Ada vetoed 1.0.2 and edited 1.0.1 (warmer)" in outcome.out
    assert drpo("review", "t", "--approve", *ADA, *QUIET).code == 0
    shown = json.loads(drpo("show", "t", "--json").out)
    human = [one for one in shown["tree"] if one["origin"] == "human"]
    assert [(one["prompt"], one["author"], one["parent_id"]) for one in human] == [(EDIT, "Ada", "1.0.1")]
    assert {one["parent_id"] for one in shown["tree"] if one["depth"] == 2} == {"1.0.1"}
    assert shown["reviews"]["1"]["veto"] == ["1.0.2"]
    assert "Ada vetoed 1.0.2" in drpo("show", "t").out


def test_decision_made_here_is_gone_on_with_there(drpo: Drpo, world: FakeServer, waiting: Outcome) -> None:
    num_calls = len(finished_keys(world))
    assert drpo("review", "t", "--veto", "1.0.1", *ADA, "--no-resume").code == 0
    assert len(finished_keys(world)) == num_calls
    assert_one_line(drpo("review", "t", "--approve", *ADA), 2, "waits for no decision")
    assert drpo("resume", "t", *QUIET).code == 4
    shown = json.loads(drpo("show", "t", "--json").out)
    assert {one["parent_id"] for one in shown["tree"] if one["depth"] == 2} == {"1.0.2"}


def test_resume_without_a_decision_waits_again(drpo: Drpo, world: FakeServer, waiting: Outcome) -> None:
    num_calls = len(finished_keys(world))
    outcome = drpo("resume", "t", "--display", "jsonl")
    assert outcome.code == 4
    stopped = outcome.events()[-1]
    assert isinstance(stopped, RunStopped)
    assert (stopped.reason, stopped.is_resumable) == ("waiting", True)
    assert len(finished_keys(world)) == num_calls
    # Reviews may be given up.
    assert drpo("resume", "t", "--set", "approve=false", *QUIET).code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--veto", "7.0.0"), "no candidate '7.0.0'"),
        (("--veto", "1.0.1", "--veto", "1.0.2"), "nothing is left"),
        (("--edit", "1.0.1"), "ID=TEXT"),
        (("--edit", "1.0.1=a", "--edit", "1.0.1=b"), "given twice"),
        (("--approve", "--author", " "), "author: it is blank"),
        (("--approve", "--json"), "--json"),
    ],
)
def test_decision_that_cannot_be_used_changes_nothing(
    drpo: Drpo, waiting: Outcome, flags: tuple[str, ...], said: str
) -> None:
    assert_one_line(drpo("review", "t", *flags), 2, said)
    assert question(drpo)["level"] == 1


def test_run_that_does_not_wait_cannot_be_reviewed(drpo: Drpo) -> None:
    assert drpo("optimize", *SEARCH, "--thread-id", "t", *QUIET).code == 0
    assert_one_line(drpo("review", "t"), 2, "waits for no decision", "drpo show t")


def test_fork_after_a_reviewed_level_is_reviewed_itself(drpo: Drpo, waiting: Outcome) -> None:
    assert drpo("review", "t", "--veto", "1.0.1", *ADA, *QUIET).code == 4
    assert drpo("fork", "t", "--level", "1", "--thread-id", "f", *QUIET).code == 4
    assert json.loads(drpo("review", "f", "--json").out)["level"] == 1
    assert drpo("fork", "t", "--level", "2", "--thread-id", "g", *QUIET).code == 4
    assert json.loads(drpo("show", "g", "--json").out)["reviews"]["1"]["veto"] == ["1.0.1"]


def test_terminal_is_asked_level_after_level(folder: Path) -> None:
    main, terminal = pty.openpty()
    editor = folder / "editor.sh"
    editor.write_text(f"#!/bin/sh\necho '{EDIT}' > \"$1\"\n")
    editor.chmod(0o700)
    command = ("optimize", *SEARCH, "--thread-id", "t", "--approve", "--display", "plain")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDITOR": str(editor), "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-m", "drpo_graph", *command],
        cwd=folder,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        close_fds=True,
    ) as process:
        os.close(terminal)
        os.write(main, b"v 1.0.2\ne 1.0.1\nx\na\na\n")
        said = read_all(main)
        assert process.wait() == 0, said
    os.close(main)
    assert "vetoed 1.0.2, edited 1.0.1 >" in said
    assert "candidates: 1.0.1, 1.0.2" in said
    assert "no level follows" in said
    assert read_result(folder / "drpo_runs").depth == 2


def read_all(descriptor: int) -> str:
    """Return what a terminal shows until its last user has closed it."""
    shown = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:
            return shown.decode()
        if not part:
            return shown.decode()
        shown += part


@pytest.mark.slow
def test_killed_review_goes_on_by_its_decision_and_repeats_no_call(
    drpo: Drpo, folder: Path, slow_world: FakeServer, waiting: Outcome
) -> None:
    before = len(finished_keys(slow_world))
    command = ("review", "t", "--veto", "1.0.1", *ADA, *QUIET)
    process = spawn_drpo(*command, folder=folder, environment={"OPENAI_BASE_URL": slow_world.base_url})
    wait_for(lambda: len(finished_keys(slow_world)) >= before + 3)
    process.kill()
    finish(process)
    assert_one_line(drpo("review", "t"), 2, "waits for no decision")
    assert drpo("resume", "t", *QUIET).code == 4
    shown = json.loads(drpo("show", "t", "--json").out)
    assert {one["parent_id"] for one in shown["tree"] if one["depth"] == 2} == {"1.0.2"}
    assert drpo("review", "t", "--approve", *ADA, *QUIET).code == 0
    unbroken = drpo("optimize", *SEARCH, "--thread-id", "u", "--approve", *QUIET)
    assert unbroken.code == 4
    assert drpo("review", "u", "--veto", "1.0.1", *ADA, *QUIET).code == 4
    assert drpo("review", "u", "--approve", *ADA, *QUIET).code == 0
    names = {"thread_id"}
    killed, whole = (read_result(folder / "drpo_runs", one).model_dump(exclude=names) for one in "tu")
    assert killed == whole


def test_nothing_waits_once_reviews_were_given_up(drpo: Drpo, waiting: Outcome) -> None:
    assert drpo("resume", "t", "--set", "approve=false", "--max-calls", "40", *QUIET).code == 3
    assert_one_line(drpo("review", "t", "--approve", *ADA), 2, "waits for no decision")
    assert drpo("resume", "t", "--set", "approve=false", "--max-calls", "400", *QUIET).code == 0
    assert_one_line(drpo("review", "t", "--veto", "1.0.1", *ADA), 2, "waits for no decision")
    assert json.loads(drpo("show", "t", "--json").out)["reviews"] == {}


def test_command_that_is_wrong_stores_no_decision(drpo: Drpo, folder: Path, waiting: Outcome) -> None:
    assert_one_line(drpo("review", "t", "--veto", "1.0.1", "--serve-options", "--x", *ADA), 2, "--serve")
    assert question(drpo)["level"] == 1
    (folder / "my_rewards.py").write_text(
        "from drpo_graph import Reward\n\nasync def short(query, response):\n"
        "    return Reward(score=max(1.0, 5.0 - len(response) / 100))\n"
    )
    reward = ("--reward", "my_rewards:short")
    assert drpo("optimize", *SEARCH, "--thread-id", "r", "--approve", *reward, *QUIET).code == 4
    assert_one_line(drpo("review", "r", "--approve", *ADA), 2, "--reward my_rewards:short")
    assert json.loads(drpo("review", "r", "--json").out)["level"] == 1
    # To look at what is asked needs no reward function.
    assert drpo("review", "r").code == 0
    assert drpo("review", "r", "--approve", *reward, *ADA, *QUIET).code == 4


def test_decided_run_says_how_it_goes_on(drpo: Drpo, waiting: Outcome) -> None:
    assert drpo("review", "t", "--veto", "1.0.1", *ADA, "--no-resume").code == 0
    shown = drpo("show", "t").out
    assert "Level 1 is decided by Ada" in shown
    assert "resume with: drpo resume t" in shown
    # What was vetoed is not the best so far.
    assert json.loads(drpo("show", "t", "--json").out)["beams"][-1] == ["1.0.2"]


def test_failed_answers_are_not_asked_again_while_a_decision_is_due(drpo: Drpo, waiting: Outcome) -> None:
    assert_one_line(drpo("resume", "t", "--retry-failed"), 2, "waits for a decision", "drpo review")
    assert list_runs(drpo) == {"t": "waiting"}


def test_files_of_an_encrypted_run_are_written_where_they_may_be(
    drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRPO_ENCRYPTION_KEY", secrets.token_hex(32))
    search = ("optimize", *SEARCH[:2], "--depth", "2", *SEARCH[4:], "--thread-id", "t", "--approve", *QUIET)
    assert drpo(*search, "--plain-files").code == 4
    assert drpo("review", "t", "--approve", *ADA, "--plain-files", *QUIET).code == 0
    assert (folder / "drpo_runs" / "t" / "result.json").exists()


def test_warm_start_from_a_run_whose_beam_was_ruled_out_begins_with_its_root(drpo: Drpo, waiting: Outcome) -> None:
    decision = ("--veto", "1.0.1", "--veto", "1.0.2", "--edit", f"1.0.1={EDIT}")
    assert drpo("review", "t", *decision, *ADA, "--no-resume").code == 0
    begun = drpo("optimize", *MODEL, "--depth", "2", "--warm-start", "t", "--thread-id", "u", *QUIET)
    assert (begun.code, begun.err) == (0, "")


def test_what_was_typed_outlives_a_refused_answer(drpo: Drpo, waiting: Outcome) -> None:
    request = ReviewRequest.model_validate(question(drpo))
    lines = iter(["v 1.0.1", "e 1.0.2", f"n {'x' * 2001}", "a", "n fine", "a"])
    given: list[Mapping[str, object]] = []

    def submit(fields: Mapping[str, object]) -> None:
        given.append(fields)
        read_decision(fields, request, Settings(), initial_prompt="Help.")

    said = io.StringIO()
    assert ask_decision(
        request, author="Ada", stdout=said, submit=submit, read=lambda prompt: next(lines), edit=lambda text: EDIT
    )
    assert "note: String should have at most 2000 characters" in said.getvalue()
    assert given[-1] == {"author": "Ada", "veto": ["1.0.1"], "edits": {"1.0.2": EDIT}, "note": "fine"}
