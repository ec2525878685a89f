"""A run writes in its folder and beside its checkpoint, and nowhere else; its files are its owner's alone."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drpo_graph.errors import CheckpointError, UsageError
from drpo_graph.events.log import open_event_files
from drpo_graph.models.capabilities import Capabilities, CapabilityCache
from drpo_graph.runs.logs import open_run_files
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.sqlite_file import is_worked_on, lock_thread, open_checkpoint
from tests.support.command import SMALL, Drpo, enter, serve_world
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--depth", "2", "--display", "none", "--thread-id")
HOSTILE_IDS = [
    *(
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/x",
        "~",
        "-x",
        ".x",
        "a\0",
        "a\n",
        "a b",
        "é",
        "x" * 101,
        "a.",
        "a...",
    ),
    *("CON", "nul", "Aux.txt", "com1", "LPT9.log", "C:x", "a\u202eb"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[FakeServer]:
    with serve_world() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    return enter(tmp_path, monkeypatch, world)


@pytest.mark.parametrize("thread_id", HOSTILE_IDS)
def test_a_thread_id_that_names_no_plain_folder_is_refused(thread_id: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Thread id"):
        check_thread_id(thread_id)
    with pytest.raises(UsageError, match="Thread id"), lock_thread(tmp_path / "x.sqlite", thread_id):
        pass
    assert not is_worked_on(tmp_path / "x.sqlite", thread_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thread_id", ["a", "run-1", "2026.01.02_x", "console", "Company", "null.1", "a..b"])
def test_a_plain_name_is_taken(thread_id: str) -> None:
    assert check_thread_id(thread_id) == thread_id


def test_a_foreign_checkpoint_s_thread_ids_lead_to_no_other_file(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "t").code == 0
    (folder / "Cargo.lock").write_text("precious")
    with closing(sqlite3.connect(folder / "drpo_runs" / "checkpoints.sqlite")) as base, base:
        (value,) = base.execute("SELECT value FROM store WHERE prefix = 'drpo.runs'").fetchone()
        record = {**json.loads(value), "thread_id": "../../Cargo", "status": "running"}
        del record["drpo_sum"]
        base.execute("UPDATE store SET value = ? WHERE prefix = 'drpo.runs'", (json.dumps(record),))
    assert drpo("runs").code == 0
    assert drpo("show", "t").code == 0
    assert (folder / "Cargo.lock").read_text() == "precious"


@pytest.mark.parametrize("name", ["events.jsonl", "log.txt", "args.txt"])
def test_a_link_planted_in_a_run_folder_stops_the_run_before_it_asks(
    drpo: Drpo, folder: Path, world: FakeServer, name: str
) -> None:
    (folder / "precious").write_text("keep")
    (folder / "drpo_runs" / "t").mkdir(parents=True)
    (folder / "drpo_runs" / "t" / name).symlink_to(folder / "precious")
    num_asked = len(world.log)
    outcome = drpo(*START, "t")
    assert (outcome.code, len(outcome.err_lines)) == (1, 1)
    assert f"{name} is a link" in outcome.err
    assert (folder / "precious").read_text() == "keep"
    assert len(world.log) == num_asked


def test_links_in_the_place_of_results_are_replaced_and_a_linked_folder_is_refused(drpo: Drpo, folder: Path) -> None:
    (folder / "precious").write_text("keep")
    (folder / "elsewhere").mkdir()
    run = folder / "drpo_runs" / "t"
    run.mkdir(parents=True)
    for name in ("best_prompt.txt", "result.json"):
        (run / name).symlink_to(folder / "precious")
    (run / "algo_output").symlink_to(folder / "elsewhere")
    outcome = drpo(*START, "t")
    assert outcome.code == 1
    assert "algo_output is a link" in outcome.err
    assert (folder / "precious").read_text() == "keep"
    assert list((folder / "elsewhere").iterdir()) == []
    (run / "algo_output").unlink()
    assert drpo("resume", "t", "--display", "none").code == 0
    assert not (run / "result.json").is_symlink()
    assert (folder / "precious").read_text() == "keep"


def test_a_folder_whose_name_no_system_takes_is_told_in_our_words() -> None:
    with pytest.raises(CheckpointError, match="--log-dir"), open_run_files(Path("a\0b"), Settings(), log_level="INFO"):
        pass


async def test_checkpoint_log_and_cache_are_their_owner_s_alone_from_the_first_byte(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        path = tmp_path / "runs" / "x.sqlite"
        async with open_checkpoint(path) as checkpoint:
            await checkpoint.store.aput(("a",), "b", {"c": 1})
            modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
            assert modes == {"x.sqlite": 0o600, "x.sqlite-wal": 0o600, "x.sqlite-shm": 0o600}
        with lock_thread(path, "t"):
            locks = path.with_name("x.sqlite.locks")
            assert [one.stat().st_mode & 0o777 for one in (locks, locks / "t.lock")] == [0o700, 0o600]
        CapabilityCache(tmp_path / "cache" / "deep").put("i", "m", capabilities=Capabilities())
    finally:
        os.umask(former)
    assert {one.stat().st_mode & 0o777 for one in (tmp_path / "cache").rglob("*.json")} == {0o600}
    assert {one.stat().st_mode & 0o777 for one in (path.parent, tmp_path / "cache" / "deep")} == {0o700}


async def test_a_checkpoint_that_its_owner_shares_stays_shared(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.touch(mode=0o660)
    path.chmod(0o660)
    async with open_checkpoint(path):
        pass
    assert path.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("place", ["link", "pipe"])
def test_events_are_read_from_a_file_alone(place: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0\n")
    folder = tmp_path / "run"
    folder.mkdir()
    if place == "link":
        (folder / "events.jsonl").symlink_to(secret)
    else:
        os.mkfifo(folder / "events.jsonl")
    with pytest.raises(CheckpointError, match=r"is a link|is no file"), open_event_files(folder, "t", lambda: False):
        pass
