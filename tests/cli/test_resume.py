"""``drpo resume``: what may change, what may not, and what a finished run does."""

import asyncio
import json
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableConfig

from drpo_graph.graph import build_graph
from drpo_graph.records import RunResult
from drpo_graph.storage.sqlite_file import lock_thread, open_checkpoint
from tests.support.command import MODEL, SMALL, Drpo, assert_one_line, finished_keys, list_runs, read_result
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--thread-id", "t", "--display", "none")
RESUME = ("resume", "t", "--display", "none")


@pytest.fixture
def stopped(drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a wrong key for the critic stopped after its first calls."""
    monkeypatch.setenv("WRONG_KEY", "wrong")
    (folder / "queries.jsonl").write_text("".join(f'{{"id": "q{n}", "text": "Question {n}?"}}\n' for n in range(6)))
    # Unasked, the critic's server refuses the key at the first critique, not before the run begins.
    outcome = drpo(*START, "queries.jsonl", "--set", "critic.api_key_env=WRONG_KEY", "--set", "probe=false")
    assert outcome.code == 1
    assert list_runs(drpo) == {"t": "failed"}


RIGHT_KEY = ("--set", "critic.api_key_env=OPENAI_API_KEY")
CHANGES = {
    "depth=4": "depth (was 3, now 4)",
    "seed=9": "seed (was 0, now 9)",
    "critic.model=vllm:other": 'critic.model (was "openai:world", now "vllm:other")',
    "optimizer.temperature=0.1": "optimizer.temperature (was 0.7, now 0.1)",
    "initial_prompt=Other.": "initial_prompt",
}


@pytest.mark.usefixtures("stopped")
def test_changed_settings_are_refused_with_what_changed(drpo: Drpo, world: FakeServer) -> None:
    num_calls = len(world.log)
    for change, named in CHANGES.items():
        assert_one_line(drpo(*RESUME, "--set", change), 2, "started with other settings", named, "--force")
    assert_one_line(drpo(*RESUME, "--set", "dept=4"), 2, "dept", "no such setting")
    assert len(world.log) == num_calls
    assert list_runs(drpo) == {"t": "failed"}


@pytest.mark.usefixtures("stopped")
def test_place_and_speed_may_change_freely(drpo: Drpo, folder: Path, world: FakeServer) -> None:
    place = ("--set", f"critic.base_url={world.base_url}", *RIGHT_KEY)
    speed = ("--set", "max_concurrency=3", "--set", "timeout_s=20", "--set", "max_retries=1")
    outcome = drpo(*RESUME, *place, *speed)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert read_result(folder / "drpo_runs").depth == 2


@pytest.mark.usefixtures("stopped")
def test_forced_changes_take_effect(drpo: Drpo) -> None:
    assert drpo(*RESUME, *RIGHT_KEY, "--set", "n_actions=1", "--force").code == 0
    tree = json.loads(drpo("show", "t", "--json").out)["tree"]
    assert {one["id"] for one in tree if one["origin"] == "rewrite"} == {"1.0.0", "2.0.0"}


@pytest.mark.usefixtures("stopped")
def test_changed_queries_are_refused_and_the_same_ones_accepted(drpo: Drpo, folder: Path) -> None:
    (folder / "other.jsonl").write_text('{"id": "q0", "text": "Another?"}\n')
    assert_one_line(drpo("resume", "t", "other.jsonl", "--display", "none"), 2, "other data", "--force")
    assert drpo("resume", "t", "queries.jsonl", "--display", "none", *RIGHT_KEY).code == 0


@pytest.mark.usefixtures("stopped")
def test_changed_templates_are_refused_and_leave_the_run_as_it_was(drpo: Drpo, folder: Path) -> None:
    (folder / "templates").mkdir()
    (folder / "templates" / "repair.md").write_text("Once more: $problem\n")
    refused = drpo(*RESUME, "--set", "templates=templates", *RIGHT_KEY)
    assert_one_line(refused, 2, "started with other prompts", "--force")
    assert list_runs(drpo) == {"t": "failed"}


def test_an_unknown_thread_is_told_and_leaves_nothing(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START).code == 0
    before = set(folder.rglob("*"))
    for command in ("resume", "show", "events"):
        assert_one_line(drpo(command, "gone"), 2, "no run 'gone'", "drpo runs")
    assert set(folder.rglob("*")) == before


def test_an_existing_thread_is_not_started_again(drpo: Drpo, folder: Path, unbroken: RunResult) -> None:
    assert drpo(*START).code == 0
    log = (folder / "drpo_runs" / "t" / "events.jsonl").read_bytes()
    assert_one_line(drpo(*START, "--seed", "5"), 2, "'t' exists already", "drpo resume t")
    assert (folder / "drpo_runs" / "t" / "events.jsonl").read_bytes() == log
    assert read_result(folder / "drpo_runs") == unbroken


def test_a_thread_that_is_worked_on_is_left_alone(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START).code == 0
    with lock_thread(folder / "drpo_runs" / "checkpoints.sqlite", "t"):
        for command in (RESUME, START):
            assert_one_line(drpo(*command), 1, "'t'", "another process", "drpo events t --follow")
        # Other runs of the same checkpoint are free.
        assert drpo("optimize", *SMALL, "--thread-id", "u", "--display", "none").code == 0


def test_a_finished_run_prints_its_result_again_without_a_call(drpo: Drpo, folder: Path, world: FakeServer) -> None:
    first = drpo("optimize", *SMALL, "--thread-id", "t", "--display", "plain")
    files = {path: path.read_bytes() for path in (folder / "drpo_runs" / "t").rglob("*.json")}
    num_calls = len(finished_keys(world))
    again = drpo("resume", "t", "--display", "plain")
    assert again.code == 0
    assert len(finished_keys(world)) == num_calls
    prompt = first.out[first.out.index("prompt found") : first.out.index("\nsearch")]
    assert prompt in again.out
    assert {path: path.read_bytes() for path in files} == files
    shown = drpo("events", "t", "--display", "none", "--follow")
    assert shown.code == 0


def test_the_files_named_by_a_resumed_run_are_where_it_was_told_to_put_them(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--log-dir", "elsewhere").code == 0
    assert "elsewhere/best_prompt.txt" in drpo("resume", "t", "--display", "plain").out
    assert not (folder / "drpo_runs" / "t").exists()
    assert drpo("resume", "t", "--display", "none", "--log-dir", "third").code == 0
    assert (folder / "third" / "best_prompt.txt").exists()
    assert "run_finished" in drpo("events", "t").out


def test_state_of_a_former_version_is_refused_with_what_to_do(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START).code == 0

    async def age() -> None:
        async with open_checkpoint(folder / "drpo_runs" / "checkpoints.sqlite") as checkpoint:
            graph = build_graph(checkpointer=checkpoint.saver)
            config: RunnableConfig = {"configurable": {"thread_id": "t"}}
            await graph.aupdate_state(config, {"format": 1}, as_node="conclude")

    asyncio.run(age())
    assert_one_line(drpo(*RESUME), 1, "state format 1", "this version reads 2", "the version that started it")


@pytest.mark.parametrize("command", ["optimize", "icl"])
def test_folder_of_another_run_is_not_written_over(drpo: Drpo, folder: Path, command: str) -> None:
    first = drpo(*START, "--log-dir", "mine")
    assert first.code == 0
    before = {path: path.read_bytes() for path in (folder / "mine").rglob("*") if path.is_file()}
    settings = SMALL if command == "optimize" else ("--num-iters", "1", *MODEL)
    again = drpo(command, *settings, "--thread-id", "u", "--display", "none", "--log-dir", "mine")
    assert_one_line(again, 2, "mine", "another run", "--log-dir")
    assert {path: path.read_bytes() for path in before} == before
    assert list_runs(drpo) == {"t": "done"}
    # Its own run is another matter.
    assert drpo(*RESUME).code == 0
