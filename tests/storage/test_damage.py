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
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.sqlite_file import SqliteStorage
from tests.support.command import SMALL, Drpo, Outcome, enter, serve_world
from tests.support.fake_server import FakeServer

RESUME_HALF = ("resume", "half", "--max-calls", "60", "--display", "none")
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


def strip_sums(path: Path) -> None:
    """Leave what an earlier version would have stored."""
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE store SET value = CAST(json_remove(value, '$.drpo_sum') AS BLOB)")
        for table, column in (("checkpoints", "checkpoint"), ("writes", "value")):
            base.execute(f"UPDATE {table} SET {column} = substr({column}, 9), type = replace(type, '+sum', '')")
        base.execute("PRAGMA journal_mode=DELETE")


def check_copies(seeds: range, stored: Path, drpo: Drpo, *, is_old: bool = False) -> int:
    """Spoil a copy for each seed, and return how many commands told damage."""
    expected = {name: stable(name, drpo(*COMMANDS[name])) for name in ("runs", "show", "events")}
    result = json.loads((stored / "drpo_runs" / "t" / "result.json").read_text())
    num_told = 0
    for seed in seeds:
        shutil.rmtree("drpo_runs")
        shutil.copytree(stored / "drpo_runs", "drpo_runs")
        shutil.rmtree("out", ignore_errors=True)
        if is_old:
            strip_sums(BASE)
        flip_bits(BASE, random.Random(seed), (20, 2)[seed % 2])
        for name, command in COMMANDS.items():
            outcome = drpo(*command)
            is_told = "damaged" in outcome.err
            num_told += is_told
            if outcome.code != 0:
                assert_told(outcome)
            elif is_old:
                # Without sums, a text that was changed is a text.
                continue
            elif name in expected:
                assert stable(name, outcome) == expected[name] or is_told, (seed, name, outcome.err)
            elif name == "resume":
                assert json.loads((BASE.parent / "t" / "result.json").read_text()) == result, seed
    return num_told


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("is_old", [False, True])
def test_of_flipped_bits_none_is_called_a_bug_or_changes_a_result(is_old: bool, stored: Path, drpo: Drpo) -> None:
    assert check_copies(range(4), stored, drpo, is_old=is_old) > 3


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("is_old", [False, True])
def test_of_many_more_flipped_bits_neither(is_old: bool, stored: Path, drpo: Drpo) -> None:
    assert check_copies(range(100, 400), stored, drpo, is_old=is_old) > 200


def change(*statements: str) -> int:
    """Change the database by hand, and return how many rows that were."""
    with closing(sqlite3.connect(BASE)) as base, base:
        return sum(base.execute(statement).rowcount for statement in statements)


T, OTHER, HALF = "WHERE prefix = 'drpo.t.", "WHERE prefix = 'drpo.other.", "WHERE prefix = 'drpo.half."
ROOT = f"{T}candidates' AND key = '0'"
RESULT = "run' AND key = 'result'"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "statement"),
    [
        ("show", f"UPDATE store SET value = (SELECT value FROM store {OTHER}{RESULT}) {T}{RESULT}"),
        ("show", f"UPDATE store SET value = (SELECT value FROM store {T}candidates' AND key > '1') {ROOT}"),
        ("show", f"DELETE FROM store {ROOT}"),
        ("show", f"DELETE FROM store {T}{RESULT}"),
        ("show", f"UPDATE store SET value = CAST(replace(value, 'assistant', 'villain') AS BLOB) {T}candidates'"),
        ("show", f"UPDATE store SET prefix = 'drpo.t.metrics' {ROOT}"),
        (
            "resume",
            "UPDATE checkpoints SET checkpoint = (SELECT max(checkpoint) FROM checkpoints WHERE thread_id = 'other') "
            "WHERE thread_id = 't' AND checkpoint_ns = ''",
        ),
        ("resume", "DELETE FROM checkpoints WHERE thread_id = 't'"),
        (
            "resume",
            "UPDATE checkpoints SET thread_id = 't', checkpoint_id = checkpoint_id || 'x' WHERE thread_id = 'other'",
        ),
        ("resume half", f"DELETE FROM store {HALF}run' AND key = 'input'"),
        ("resume half", "UPDATE writes SET channel = 'rejected' WHERE thread_id = 'half'"),
        ("resume half", f"DELETE FROM store {HALF}candidates'"),
        ("runs", "DROP TABLE checkpoints"),
    ],
)
def test_what_was_moved_changed_or_taken_by_hand_is_told(command: str, statement: str, drpo: Drpo) -> None:
    assert change(statement) != 0
    told = {**COMMANDS, "resume half": RESUME_HALF}[command]
    outcome = drpo(*told)
    assert_told(outcome)
    assert "damaged" in outcome.err
    assert drpo("show", "other").code == 0 or command == "runs"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("commands", "statement"),
    [
        (("show",), f"UPDATE store SET value = replace(value, 'reward_same', 'reward_sama') {T}{RESULT}"),
        (("show", "resume half"), "UPDATE store SET value = replace(value, '\"path_reward', '\"path_rewarx') {level}"),
        (("show", "resume half"), "UPDATE store SET value = json_set(value, '$.beam', 7) {level}"),
        (("show", "resume half"), "UPDATE store SET value = replace(value, 'prompt\"', 'pronpt\"') {candidate}"),
        (("show", "resume half"), "UPDATE store SET value = replace(value, 'query_id', 'query_ie') {rollout}"),
        (("resume half",), f"UPDATE store SET value = replace(value, 'choices', 'choicet') {HALF}calls'"),
        (("resume half",), f"UPDATE store SET value = replace(value, 'charged', 'chargee') {HALF}budget'"),
    ],
)
def test_what_an_earlier_version_stored_and_lost_its_form_is_told(
    commands: tuple[str, ...], statement: str, drpo: Drpo
) -> None:
    strip_sums(BASE)
    named = {"level": "levels", "candidate": "candidates", "rollout": "rollouts"}
    wheres = {one: f"WHERE prefix IN ('drpo.t.{kind}', 'drpo.half.{kind}')" for one, kind in named.items()}
    assert change(statement.format(**wheres)) > 0
    for command in commands:
        outcome = drpo(*{**COMMANDS, "resume half": RESUME_HALF}[command])
        assert_told(outcome)
        assert "damaged" in outcome.err
    assert drpo("export", "t", "--output", "out").code in (0, 1)
    assert drpo("show", "other").code == 0


@pytest.mark.usefixtures("folder")
def test_a_schema_that_is_no_text_is_told_by_every_command(drpo: Drpo) -> None:
    content = BASE.read_bytes()
    assert b"CREATE TABLE store" in content
    BASE.write_bytes(content.replace(b"CREATE TABLE store", b"CREATE TABLE st\xa0re"))
    for command in COMMANDS.values():
        outcome = drpo(*command)
        assert_told(outcome)
        assert "malformed" in outcome.err or "damaged" in outcome.err, outcome.err


@pytest.mark.usefixtures("folder")
def test_what_can_be_read_of_a_damaged_run_is_exported_and_the_others_are_whole(drpo: Drpo) -> None:
    expected = {name: (BASE.parent / "t" / name).read_bytes() for name in ("best_prompt.txt", "result.json")}
    assert change("DELETE FROM store WHERE prefix = 'drpo.t.candidates' AND key = '0'") == 1
    assert change("UPDATE store SET value = x'7b' WHERE prefix = 'drpo.t.candidates' AND key = '1.0.0'") == 1
    outcome = drpo("export", "t", "--output", "out")
    assert outcome.code == 0
    assert "damaged: 1 of its records could not be read" in outcome.err
    assert {name: (Path("out") / "t" / name).read_bytes() for name in expected} == expected
    tree = json.loads((Path("out") / "t" / "algo_output" / "tree.json").read_text())
    assert [one["id"] for one in tree if one["id"] in ("0", "1.0.0")] == []
    assert len(tree) >= 3
    # Without its result, the best of what there is.
    assert change("UPDATE store SET value = x'7b' WHERE prefix = 'drpo.t.run' AND key = 'result'") == 1
    assert drpo("export", "t", "--output", "out").code == 0
    assert (Path("out") / "t" / "best_prompt.txt").read_bytes() == expected["best_prompt.txt"]
    assert drpo("export", "other", "--output", "out").err == ""
    # A run that is damaged in the list is left out of it, and said to be.
    assert change("UPDATE store SET value = x'7b' WHERE prefix = 'drpo.runs' AND key = 't'") == 1
    listed = drpo("runs", "--json")
    assert {run["thread_id"] for run in json.loads(listed.out)} == {"other", "half"}
    assert "Run 't': its entry in the list of runs is damaged" in listed.err
    assert drpo("export", "t", "--output", "out").code == 0


@pytest.mark.usefixtures("folder")
def test_a_damaged_index_and_a_damaged_page_are_told_and_read_past(drpo: Drpo, folder: Path) -> None:
    with closing(sqlite3.connect(BASE)) as base:
        (size,) = base.execute("PRAGMA page_size").fetchone()
        (root,) = base.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_store_1'").fetchone()
    whole = BASE.read_bytes()
    pages = {number: whole[(number - 1) * size : number * size] for number in range(2, len(whole) // size + 1)}
    # SQLite's mark of a leaf.
    leaf = next(number for number, page in pages.items() if page[0] == 13 and b"drpo.t.rollouts" in page)
    for page in (root, leaf):
        spoiled = bytearray(whole)
        spoiled[(page - 1) * size : page * size] = bytes(size)
        BASE.write_bytes(spoiled)
        assert_told(drpo("resume", "t", "--display", "none"))
        shutil.rmtree("out", ignore_errors=True)
        outcome = drpo("export", "t", "--output", "out")
        assert outcome.code == 0, outcome.err
        assert "damaged" in outcome.err
        assert (Path("out") / "t" / "best_prompt.txt").read_text() == (
            BASE.parent / "t" / "best_prompt.txt"
        ).read_text()


async def test_values_that_json_writers_write_differently_are_no_damage(tmp_path: Path) -> None:
    value = {
        "numbers": [float("nan"), float("inf"), -0.0, 1e22, 1e-7, 0.1 + 0.2, 2**53, 5e-324],
        "texts": ["NaN", "ä 中 😀", "\0\x7f\u2028", "\\", "/"],
        "nested": {"drpo": {"": [None, True]}},
    }
    async with SqliteStorage(tmp_path / "runs.sqlite").open_run("t") as checkpoint:
        await Archive(checkpoint.store, "t").put("calls", "key", value)
        found = await Archive(checkpoint.store, "t").get("calls", "key")
    assert found == {**value, "numbers": [None, None, *value["numbers"][2:]]}


@pytest.mark.usefixtures("folder")
def test_a_damaged_run_can_be_deleted(drpo: Drpo) -> None:
    assert change(f"UPDATE store SET value = x'7b' {ROOT}", "UPDATE checkpoints SET checkpoint = x'00'") > 1
    assert_told(drpo("prune", "t", "--keep", "result"))
    assert drpo("prune", "t", "--keep", "nothing", "--yes").code == 0
    with closing(sqlite3.connect(BASE)) as base:
        assert base.execute("SELECT * FROM store WHERE prefix LIKE 'drpo.t.%'").fetchall() == []
        assert base.execute("SELECT * FROM checkpoints WHERE thread_id = 't'").fetchall() == []
    assert "damaged" not in drpo("runs").err
