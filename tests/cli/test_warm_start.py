"""``--warm-start``: a run begins with what was found, and its optimizer sees what was tried in vain."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import MODEL, Drpo, assert_one_line, finished_keys, list_runs, read_result
from tests.support.fake_server import FakeServer

SEARCH = (*MODEL, "--depth", "4", "--n-actions", "3", "--beam-size", "2", "--queries-per-level", "1")
QUIET = ("--display", "none")
TRIED = "Rewrites that a former run tried."


@pytest.fixture
def former(drpo: Drpo, folder: Path) -> RunResult:
    """A finished run, with rewrites that did worse."""
    assert drpo("optimize", *SEARCH, "--thread-id", "old", *QUIET).code == 0
    return read_result(folder / "drpo_runs", "old")


def rejected_in(folder: Path, drpo: Drpo, thread_id: str) -> list[str]:
    tree = {one["id"]: one for one in json.loads(drpo("show", thread_id, "--json").out)["tree"]}
    return [
        one["prompt"]
        for one in tree.values()
        if one["origin"] == "rewrite" and one["reward"] < tree[one["parent_id"]]["reward"]
    ]


def optimizer_requests(world: FakeServer, since: int) -> list[str]:
    bodies = [entry["body"] for entry in list(world.log)[since:] if entry.get("body")]
    texts = [body["messages"][0]["content"] for body in bodies]
    return [text for text in texts if text.startswith("You improve the system prompt")]
