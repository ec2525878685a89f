"""A damaged database is told as one: never a raw error, and never another result than the one that was stored."""

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from tests.support.command import SMALL, Drpo, Outcome, enter, serve_world
from tests.support.fake_server import FakeServer

BASE = Path("drpo_runs") / "checkpoints.sqlite"
COMMANDS = {
    "runs": ("runs", "--json"),
    "show": ("show", "t", "--json"),
    "events": ("events", "t"),
    "export": ("export", "t", "--output", "out"),
    "resume": ("resume", "t", "--display", "none"),
}


@pytest.fixture(scope="module")
def world() -> Iterator[FakeServer]:
    with serve_world() as server:
        yield server


@pytest.fixture(scope="module")
def stored(world: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs and one that its budget stopped, its database in one file."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch, world)
        start = ("optimize", *SMALL, "--display", "none", "--thread-id")
        assert _run([*start, "t"], is_debug=False) == 0
        assert _run([*start, "other", "--depth", "2"], is_debug=False) == 0
        assert _run([*start, "half", "--max-calls", "14"], is_debug=False) == 3
        with closing(sqlite3.connect(BASE)) as base:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """A copy of it that may be spoiled."""
    place = tmp_path / "copy"
    shutil.copytree(stored, place)
    return enter(place, monkeypatch, world)


def flip_bits(path: Path, rng: random.Random, number: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(number):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def stable(name: str, outcome: Outcome) -> object:
    """Return what a command told, without what differs from time to time."""
    if name == "runs":
        return {run["thread_id"]: run["status"] for run in json.loads(outcome.out)}
    if name == "show":
        told = json.loads(outcome.out)
        return {key: told[key] for key in ("result", "beams", "tree")}
    return outcome.out


def assert_told(outcome: Outcome) -> None:
    """It is one of our errors, in a line."""
    assert outcome.code in (1, 2), outcome.err
    assert "a bug" not in outcome.err, outcome.err
    errors = [line for line in outcome.err_lines if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err


def check_copies(seeds: range, stored: Path, tmp_path: Path, drpo: Drpo) -> int:
    """Spoil a copy for each seed, and return how many commands told damage."""
    expected = {name: stable(name, drpo(*COMMANDS[name])) for name in ("runs", "show", "events")}
    result = json.loads((stored / "drpo_runs" / "t" / "result.json").read_text())
    num_told = 0
    for seed in seeds:
        shutil.rmtree(tmp_path / "copy" / "drpo_runs")
        shutil.copytree(stored / "drpo_runs", tmp_path / "copy" / "drpo_runs")
        shutil.rmtree("out", ignore_errors=True)
        flip_bits(BASE, random.Random(seed), 20)
        for name, command in COMMANDS.items():
            outcome = drpo(*command)
            if outcome.code != 0:
                assert_told(outcome)
                num_told += "damaged" in outcome.err
            elif name in expected:
                found = stable(name, outcome)
                is_partial = "damaged" in outcome.err
                assert found == expected[name] or is_partial, (seed, name, outcome.err)
            elif name == "resume":
                assert json.loads((BASE.parent / "t" / "result.json").read_text()) == result, seed
    return num_told


@pytest.mark.usefixtures("folder")
def test_of_flipped_bits_none_is_called_a_bug_or_changes_a_result(stored: Path, tmp_path: Path, drpo: Drpo) -> None:
    assert check_copies(range(12), stored, tmp_path, drpo) > 12


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_of_many_more_flipped_bits_neither(stored: Path, tmp_path: Path, drpo: Drpo) -> None:
    assert check_copies(range(100, 300), stored, tmp_path, drpo) > 200
