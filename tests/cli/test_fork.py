"""``drpo fork``: the same settings end alike and cost nothing; others take effect after the level."""

import json
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import MODEL, Drpo, assert_one_line, finished_keys, list_runs, read_result
from tests.support.fake_server import FakeServer

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
    assert drpo("fork", "t", "--level", "0", "--max-calls", "1", "--thread-id", "f", *QUIET).code == 0
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
