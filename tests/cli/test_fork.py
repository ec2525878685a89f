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
