"""``drpo fork``: the same settings end alike and cost nothing; others take effect after the level."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from drpo_graph.records import RunResult
from drpo_graph.runs.forks import create_fork
from drpo_graph.runs.runner import RunOptions, resume
from drpo_graph.search.assembly import Parts
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.run_list import RunRegistry
from tests.support.command import (
    KEY,
    MODEL,
    Drpo,
    assert_one_line,
    finish,
    finished_keys,
    list_runs,
    read_result,
    serve,
    spawn_drpo,
    wait_for,
)
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder

SEARCH = (*MODEL, "--depth", "4", "--n-actions", "2", "--beam-size", "2", "--queries-per-level", "1")
QUIET = ("--display", "none")
ITS_OWN = {"thread_id", "usage_by_role", "cost_by_role"}
"""What a fork's result does not have in common with its origin's."""


def found(result: RunResult) -> dict[str, object]:
    """Return what a run found, without its name and its cost."""
    return result.model_dump(exclude=ITS_OWN)


@pytest.fixture
def origin(drpo: Drpo, folder: Path) -> RunResult:
    """A finished run of three levels, with validation."""
    (folder / "held_out.txt").write_text("Held out one?\nHeld out two?\n")
    assert drpo("optimize", *SEARCH, "--validation", "held_out.txt", "--thread-id", "t", *QUIET).code == 0
    return read_result(folder / "drpo_runs")


def test_unchanged_fork_makes_no_call_and_ends_alike_from_each_level(
    drpo: Drpo, folder: Path, world: FakeServer, origin: RunResult
) -> None:
    before = drpo("show", "t", "--json").out
    num_calls = len(finished_keys(world))
    for level in range(4):
        outcome = drpo("fork", "t", "--level", str(level), "--thread-id", f"f{level}", *QUIET)
        assert (outcome.code, outcome.err) == (0, "")
        result = read_result(folder / "drpo_runs", f"f{level}")
        assert found(result) == found(origin)
        assert result.usage_by_role == {}
        tree, former = (json.loads(drpo("show", one, "--json").out)["tree"] for one in (f"f{level}", "t"))
        assert tree == former
    assert len(finished_keys(world)) == num_calls
    assert drpo("show", "t", "--json").out == before


def test_changed_settings_take_effect_after_the_level_only(drpo: Drpo, world: FakeServer, origin: RunResult) -> None:
    num_calls = len(finished_keys(world))
    change = ("--depth", "5", "--n-actions", "3", "--queries-per-level", "2", "--query-policy", "stream")
    outcome = drpo("fork", "t", "--level", "2", "--thread-id", "f", *change, *QUIET)
    assert (outcome.code, outcome.err) == (0, "")
    shown, former = (json.loads(drpo("show", one, "--json").out) for one in ("f", "t"))
    trees = [{node["id"]: node for node in one["tree"]} for one in (shown, former)]
    early = {one for one in trees[0] if int(one.partition(".")[0]) <= 2}
    assert {one: trees[0][one] for one in early} == {one: node for one, node in trees[1].items() if one in early}
    assert sum(one.startswith("3.0.") for one in trees[0]) == 3
    assert {len(trees[0][one]["rollouts"]) for one in trees[0] if one[0] in "34"} == {2}
    assert shown["result"]["depth"] == 4
    # The budget of the fork is for its own calls.
    own = sum(usage["calls"] for usage in shown["result"]["usage_by_role"].values())
    assert own == len(finished_keys(world)) - num_calls > 0
    assert shown["result"]["fingerprints"]["settings"] != origin.fingerprints["settings"]
    assert shown["result"]["fingerprints"]["data"] == origin.fingerprints["data"]


def test_copied_calls_use_nothing_of_the_budget(drpo: Drpo, origin: RunResult) -> None:
    assert sum(usage.calls for usage in origin.usage_by_role.values()) > 5
    shown = drpo("fork", "t", "--level", "0", "--max-calls", "1", "--thread-id", "f", "--display", "jsonl")
    assert shown.code == 0
    assert not [event for event in shown.events() if event.type == "warned"]
    stopped = drpo("fork", "t", "--level", "1", "--max-calls", "5", "--seed", "9", "--thread-id", "g", *QUIET)
    assert stopped.code == 3
    assert drpo("resume", "g", "--max-calls", "500", *QUIET).code == 0
    shown = json.loads(drpo("show", "g", "--json").out)
    assert (shown["run"]["forked_from"], shown["run"]["forked_level"]) == ("t", 1)
    assert list_runs(drpo) == {"t": "done", "f": "done", "g": "done"}


@pytest.mark.usefixtures("origin")
def test_what_cannot_change_is_refused_with_the_reason(drpo: Drpo) -> None:
    fork = ("fork", "t", "--level", "1", "--thread-id", "f", *QUIET)
    assert_one_line(drpo(*fork, "--set", "initial_prompt=Other."), 2, "initial_prompt", "cannot change", "start a new")
    assert_one_line(drpo(*fork, "--set", "num_queries=2"), 2, "num_queries", "drawn when it began")
    assert_one_line(drpo(*fork, "--set", "compat=drpo", "--set", "beam_size=1"), 2, "compat")
    assert_one_line(drpo(*fork, "--set", "dept=2"), 2, "no such setting")
    assert_one_line(drpo("fork", "t", "--level", "1", "--thread-id", "t", *QUIET), 2, "exists already")
    assert_one_line(drpo("fork", "nobody", "--level", "1", *QUIET), 2, "nobody")
    assert list_runs(drpo) == {"t": "done"}


@pytest.mark.usefixtures("origin")
def test_level_without_checkpoint_is_an_error_that_lists_those_there_are(drpo: Drpo) -> None:
    assert_one_line(drpo("fork", "t", "--level", "7", *QUIET), 2, "level 7", "levels 0, 1, 2, 3")
    assert drpo("prune", "t", "--keep", "records", "--yes").code == 0
    assert_one_line(drpo("fork", "t", "--level", "1", *QUIET), 2, "level 1", "pruned")
    assert list_runs(drpo) == {"t": "done"}


@pytest.mark.usefixtures("origin")
def test_runs_and_show_tell_where_a_fork_comes_from(drpo: Drpo) -> None:
    assert "fork of" not in drpo("runs").out + drpo("show", "t").out
    assert drpo("fork", "t", "--level", "2", "--thread-id", "f", *QUIET).code == 0
    assert "t after level 2" in drpo("runs").out
    assert "fork of t after level 2" in drpo("show", "f").out


def test_fork_of_a_fork_has_what_both_paid_for(drpo: Drpo, folder: Path, world: FakeServer, origin: RunResult) -> None:
    assert drpo("fork", "t", "--level", "1", "--seed", "5", "--thread-id", "f", *QUIET).code == 0
    num_calls = len(finished_keys(world))
    assert drpo("fork", "f", "--level", "2", "--thread-id", "g", *QUIET).code == 0
    results = [read_result(folder / "drpo_runs", one) for one in ("f", "g")]
    assert found(results[0]) == found(results[1]) != found(origin)
    assert_one_line(drpo("fork", "f", "--level", "0", *QUIET), 2, "levels 1, 2, 3")
    assert len(finished_keys(world)) == num_calls


def test_unfinished_run_can_be_forked_from_the_levels_that_it_reached(drpo: Drpo, folder: Path) -> None:
    start = ("optimize", *SEARCH, "--thread-id", "t", *QUIET)
    assert drpo(*start, "--max-calls", "13").code == 3
    assert_one_line(drpo("fork", "t", "--level", "3", *QUIET), 2, "levels 0, 1.")
    assert drpo("fork", "t", "--level", "1", "--max-calls", "500", "--thread-id", "f", *QUIET).code == 0
    assert drpo("resume", "t", "--max-calls", "500", *QUIET).code == 0
    whole, forked = (read_result(folder / "drpo_runs", one) for one in "tf")
    assert found(whole) == found(forked)


@pytest.mark.usefixtures("origin")
async def test_what_a_killed_fork_left_is_no_part_of_the_next_one(drpo: Drpo, folder: Path) -> None:
    options = RunOptions(checkpoint=folder / "drpo_runs" / "checkpoints.sqlite", writes_files=False)
    changes = {"seed": 9}
    await create_fork("t", "f", level=3, changes=changes, options=options, parts=Parts())
    # Killed after its state was saved, and before it was on the list.
    async with find_storage(options.checkpoint).open_run("f") as checkpoint:
        await RunRegistry(checkpoint.store).forget("f")
    await create_fork("t", "f", level=1, changes={}, options=options, parts=Parts())
    async with find_storage(options.checkpoint).open_run("f") as checkpoint:
        archive = Archive(checkpoint.store, "f")
        assert {key[0] for key in await archive.get_all("candidates")} == {"0", "1"}
        assert set(await archive.get_all("levels")) == {"000000"}
    result = await resume("f", options=options)
    assert found(result) == found(read_result(folder / "drpo_runs"))


@pytest.mark.usefixtures("origin")
def test_fork_needs_its_origin_no_more(drpo: Drpo, world: FakeServer) -> None:
    stopped = drpo("fork", "t", "--level", "1", "--seed", "3", "--max-calls", "3", "--thread-id", "f", *QUIET)
    assert stopped.code == 3
    assert drpo("prune", "t", "--keep", "nothing", "--yes").code == 0
    num_calls = len(finished_keys(world))
    assert drpo("resume", "f", "--max-calls", "500", *QUIET).code == 0
    used = json.loads(drpo("show", "f", "--json").out)["result"]["usage_by_role"]
    assert sum(one["calls"] for one in used.values()) == len(finished_keys(world)) - num_calls + 3


@pytest.mark.slow
@pytest.mark.usefixtures("origin")
def test_killed_fork_repeats_no_finished_call_and_ends_as_an_unbroken_one(
    drpo: Drpo, folder: Path, world: FakeServer, slow_world: FakeServer
) -> None:
    change = ("--level", "1", "--seed", "9", *QUIET)
    assert drpo("fork", "t", *change, "--thread-id", "whole").code == 0
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    before = len(slow_world.log)
    process = spawn_drpo("fork", "t", *change, "--thread-id", "f", folder=folder, environment=environment)
    wait_for(lambda: sum(one["event"] == "end" for one in slow_world.log[before:]) >= 4)
    process.send_signal(signal.SIGKILL)
    finish(process)
    in_flight = {one["key"] for one in slow_world.log[before:] if one["event"] == "start"}
    num_calls = len(finished_keys(world))
    assert drpo("resume", "f", *QUIET).code == 0
    whole, killed = (read_result(folder / "drpo_runs", one) for one in ("whole", "f"))
    assert found(killed) == found(whole)
    # All that it had asked twice was in flight, or had just come back.
    own = sum(one.calls for one in whole.usage_by_role.values())
    assert own - len(in_flight) <= len(finished_keys(world)) - num_calls < own


HARD_RUNS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "published": (("--compat", "drpo", "--depth", "4"), {}),
    "unusable replies": (("--depth", "4"), {"missing_rate": 0.2}),
    "easy levels": (("--depth", "4"), {"easy_rate": 0.5}),
    "drawn beams": (("--depth", "4", "--set", "beam_sampling=stochastic", "--keep-parents"), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD_RUNS)
def test_unchanged_fork_of_any_run_ends_alike(
    name: str, drpo: Drpo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, rates = HARD_RUNS[name]
    with serve(build_responder(seed=3, **rates), ServerOptions(models=["world"], api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert drpo("optimize", *MODEL, *flags, "--thread-id", "t", *QUIET).code == 0
        origin, num_calls = read_result(folder / "drpo_runs"), len(server.log)
        for level in range(origin.depth + 1):
            assert drpo("fork", "t", "--level", str(level), "--thread-id", f"f{level}", *QUIET).code == 0
            # Replies that could not be used are counted where they are read.
            forked = read_result(folder / "drpo_runs", f"f{level}").model_copy(update={"unusable_by_kind": {}})
            assert found(forked) == found(origin.model_copy(update={"unusable_by_kind": {}}))
        assert len(server.log) == num_calls
