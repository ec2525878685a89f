"""``drpo prune`` gives space back and leaves what was to be kept; ``drpo export`` needs the checkpoint alone."""

import asyncio
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import typer

from drpo_graph.cli.commands import retention as retention_commands
from drpo_graph.errors import CheckpointError, UsageError
from drpo_graph.storage.retention import Keep, prune_run
from drpo_graph.storage.run_list import RunRegistry
from drpo_graph.storage.sqlite_file import SqliteStorage, lock_thread
from tests.support.command import SMALL, Drpo, finish, list_runs, read_result, spawn_drpo
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--display", "none", "--thread-id")
BASE = Path("drpo_runs") / "checkpoints.sqlite"


def count(table: str, where: str = "1") -> int:
    with closing(sqlite3.connect(BASE)) as base:
        return int(base.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])


@pytest.fixture
def finished(drpo: Drpo, folder: Path) -> Path:
    """A checkpoint with one finished run and one that stopped at once."""
    assert drpo(*START, "done").code == 0
    assert drpo(*START, "broken", "--critic-model", "openai:wrold").code == 1
    return folder / "drpo_runs"


def test_old_checkpoints_of_finished_runs_go_and_space_is_given_back(drpo: Drpo, finished: Path) -> None:
    others = count("checkpoints", "thread_id = 'broken'")
    before, shown = count("checkpoints", "thread_id = 'done'"), drpo("show", "done").out
    outcome = drpo("prune")
    assert outcome.code == 0
    size_before, size_after = (int(word) for word in outcome.out.split() if word.isdigit() and int(word) > 10_000)
    assert size_after < 0.8 * size_before
    assert size_after == BASE.stat().st_size
    assert f"done: {before - 1} checkpoints" in outcome.out
    assert (count("checkpoints", "thread_id = 'done'"), count("checkpoints", "thread_id = 'broken'")) == (1, others)
    assert drpo("show", "done").out == shown
    result = read_result(finished, "done")
    assert drpo("resume", "done", "--display", "none").code == 0
    assert read_result(finished, "done") == result


def test_a_run_of_which_only_the_result_is_kept_can_be_shown_and_resumed(
    drpo: Drpo, finished: Path, world: FakeServer
) -> None:
    result, files = read_result(finished, "done"), {one: one.read_bytes() for one in finished.rglob("*.json")}
    assert drpo("prune", "done", "--keep", "result", "--yes").code == 0
    assert count("store", "prefix LIKE '%done.calls'") == 0
    assert drpo("show", "done").code == 0
    assert json.loads(drpo("show", "done", "--json").out)["result"]["system_prompt"] == result.system_prompt
    num_asked = len(world.log)
    assert drpo("resume", "done", "--display", "none").code == 0
    assert len(world.log) == num_asked
    assert {one: one.read_bytes() for one in files} == files
    assert drpo("export", "done", "--output", "out").code == 0
    exported = json.loads((Path("out") / "done" / "algo_output" / "output.json").read_text())
    assert exported == json.loads((finished / "done" / "algo_output" / "output.json").read_text())
    assert list_runs(drpo) == {"done": "done", "broken": "failed"}


def test_a_run_of_which_nothing_is_kept_is_gone_from_every_table(drpo: Drpo, finished: Path) -> None:
    assert drpo("prune", "done", "--keep", "nothing", "--yes").code == 0
    assert [count(table, "thread_id = 'done'") for table in ("checkpoints", "writes")] == [0, 0]
    assert count("store", "prefix LIKE '%done%' OR key = 'done'") == 0
    assert list_runs(drpo) == {"broken": "failed"}
    assert (finished / "done" / "result.json").is_file()


def test_a_dry_run_changes_nothing(drpo: Drpo, finished: Path) -> None:
    rows = [count(table) for table in ("checkpoints", "writes", "store")]
    outcome = drpo("prune", "--keep", "nothing", "--older-than", "0h", "--unfinished", "--dry-run")
    assert "2 runs would be pruned; nothing was changed" in outcome.out
    assert [count(table) for table in ("checkpoints", "writes", "store")] == rows


def test_a_run_that_is_worked_on_or_unfinished_or_young_is_left(drpo: Drpo, finished: Path) -> None:
    rows = [count(table) for table in ("checkpoints", "writes", "store")]
    with lock_thread(BASE, "done"):
        assert "done: is being worked on" in drpo("prune", "done", "--keep", "nothing", "--yes").out
    assert "broken: is not finished" in drpo("prune", "broken").out
    assert "done: is not old enough" in drpo("prune", "done", "--older-than", "30d").out
    assert [count(table) for table in ("checkpoints", "writes", "store")] == rows


def change(statement: str) -> None:
    with closing(sqlite3.connect(BASE)) as base, base:
        assert base.execute(statement).rowcount > 0


def make_old(thread_id: str) -> None:
    """Let a run's record tell of a process that began and ended long ago."""
    age = "value = json_remove(json_set(value, '$.updated_at', 1.0), '$.drpo_sum')"
    change(f"UPDATE store SET {age} WHERE prefix = 'drpo.runs' AND key = '{thread_id}'")


def test_the_age_of_a_killed_run_counts_from_what_it_stored_last(drpo: Drpo, finished: Path) -> None:
    by_age = ("prune", "broken", "--keep", "nothing", "--older-than", "1d", "--yes")
    make_old("broken")
    assert "broken: is not old enough" in drpo(*by_age).out
    change("UPDATE store SET updated_at = '2020-01-01 00:00:00' WHERE prefix LIKE 'drpo.broken.%'")
    # Its last checkpoint is as young as it is.
    assert "broken: is not old enough" in drpo(*by_age).out
    assert list_runs(drpo) == {"done": "done", "broken": "failed"}
    change("DELETE FROM checkpoints WHERE thread_id = 'broken'")
    assert "1 run pruned" in drpo(*by_age).out
    assert list_runs(drpo) == {"done": "done"}


@pytest.mark.slow
def test_a_run_that_is_resumed_while_the_question_waits_is_left(
    drpo: Drpo, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resume(*_: object) -> None:
        process = spawn_drpo("resume", "broken", "--display", "none", folder=finished.parent, environment={})
        assert finish(process).code == 1

    monkeypatch.setattr(retention_commands, "_confirm", resume)
    outcome = drpo("prune", "broken", "--keep", "nothing")
    assert "broken: was worked on meanwhile; left as it is" in outcome.out
    assert list_runs(drpo) == {"done": "done", "broken": "failed"}


def test_by_age_an_unfinished_run_goes_only_where_that_is_asked_for(drpo: Drpo, finished: Path) -> None:
    by_age = ("prune", "--keep", "nothing", "--older-than", "0h", "--yes")
    outcome = drpo(*by_age)
    assert "broken: is not finished (--unfinished takes it, too); left as it is" in outcome.out
    assert list_runs(drpo) == {"broken": "failed"}
    assert "1 run pruned" in drpo(*by_age, "--unfinished").out
    assert list_runs(drpo) == {}


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (
            ("done", "broken", "--keep", "nothing"),
            "Delete 2 runs entirely (1 unfinished, could be resumed): broken, done?",
        ),
        (("done", "--keep", "nothing"), "Delete 1 runs entirely: done?"),
        (("done", "--keep", "result"), "Take all but the result from 1 runs: done?"),
    ],
)
def test_the_question_names_what_goes(
    drpo: Drpo, finished: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], question: str
) -> None:
    asked = []

    def refuse(text: str, **_: object) -> None:
        asked.append(text)
        raise typer.Abort

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", refuse)
    rows = count("store")
    assert drpo("prune", *arguments).code == 130
    assert asked == [f"{question} It cannot be undone"]
    assert count("store") == rows


@pytest.mark.parametrize("keep", ["records", "result"])
def test_of_an_unfinished_run_nothing_is_taken_by_a_caller_either(drpo: Drpo, finished: Path, keep: Keep) -> None:
    rows = [count(table) for table in ("checkpoints", "writes", "store")]

    async def prune(status: str) -> None:
        async with SqliteStorage(BASE).open_run("broken", must_exist=True) as opened:
            record = await RunRegistry(opened.store).find("broken")
            await prune_run(opened, record.model_copy(update={"status": status}), keep=keep)

    # Nor from one whose record says that it is finished, but which has no result.
    for status in ("failed", "done"):
        with pytest.raises(UsageError, match="not finished"):
            asyncio.run(prune(status))
    assert [count(table) for table in ("checkpoints", "writes", "store")] == rows


def test_space_is_not_given_back_beside_a_run_that_is_worked_on(drpo: Drpo, finished: Path) -> None:
    size = BASE.stat().st_size
    with lock_thread(BASE, "broken"):
        outcome = drpo("prune", "done")
    assert outcome.code == 0
    assert "broken: is being worked on; the space is given back" in outcome.out
    assert "1 run pruned" in outcome.out
    assert count("pragma_freelist_count()", "freelist_count > 0") == 1
    assert drpo("prune", "done").code == 0
    assert BASE.stat().st_size < 0.8 * size


def test_space_that_cannot_be_given_back_is_told_beside_what_was_pruned(
    drpo: Drpo, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def fail(_: SqliteStorage) -> None:
        asked.append("to give space back")
        raise CheckpointError("the disk is full.")

    monkeypatch.setattr(SqliteStorage, "reclaim", fail)
    assert drpo("prune", "broken").code == 0
    assert asked == []
    outcome = drpo("prune", "done")
    assert outcome.code == 1
    assert outcome.err == "error: 1 run pruned; space could not be given back: the disk is full.\n"
    assert count("checkpoints", "thread_id = 'done'") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", "nothing"), "name the runs"),
        (("--unfinished", "--older-than", "1d"), "only --keep nothing"),
        (("done", "--keep", "result"), "give --yes"),
        (("--older-than", "soon"), "30d"),
        (("../done",), "expected letters"),
        (("nowhere",), "There is no run"),
    ],
)
def test_what_would_take_too_much_is_refused_in_one_line(
    drpo: Drpo, finished: Path, arguments: tuple[str, ...], words: str
) -> None:
    rows = count("store")
    outcome = drpo("prune", *arguments)
    assert outcome.code == 2
    assert len(outcome.err_lines) == 1
    assert words in outcome.err
    assert count("store") == rows


def test_exported_files_are_those_of_the_run_folder(drpo: Drpo, finished: Path) -> None:
    names = (
        "best_prompt.txt",
        "result.json",
        "algo_output/output.json",
        "algo_output/tree.json",
        "algo_output/output.pkl",
    )
    own = {name: (finished / "done" / name).read_bytes() for name in names}
    shutil.rmtree(finished / "done")
    assert drpo("export", "--all", "--output", "out").code == 0
    assert {name: (Path("out") / "done" / name).read_bytes() for name in names} == own
    assert json.loads((Path("out") / "done" / "run.json").read_text())["status"] == "done"
    assert (Path("out") / "broken" / "best_prompt.txt").read_text() == "You are a helpful assistant.\n"
    assert not (Path("out") / "broken" / "result.json").exists()
    assert (Path("out") / "broken" / "events.jsonl").is_file()
    assert {path.stat().st_mode & 0o777 for path in Path("out").rglob("*") if path.is_file()} == {0o600}


def test_exported_events_replace_a_link_and_leave_its_target(drpo: Drpo, finished: Path) -> None:
    Path("precious").write_text("keep")
    exported = Path("out") / "done" / "events.jsonl"
    exported.parent.mkdir(parents=True)
    exported.symlink_to(Path("precious").absolute())
    outcome = drpo("export", "done", "--output", "out")
    assert (outcome.code, Path("precious").read_text()) == (0, "keep")
    assert not exported.is_symlink()
    assert exported.read_bytes() == (finished / "done" / "events.jsonl").read_bytes()
    assert f"{len(exported.read_text().splitlines())} events" in outcome.out


def test_events_in_the_folder_that_is_exported_to_stay_the_file_that_is_written(drpo: Drpo, finished: Path) -> None:
    log = finished / "done" / "events.jsonl"
    before = log.stat()
    assert drpo("export", "done", "--output", finished).code == 0
    assert (log.stat().st_ino, log.stat().st_size) == (before.st_ino, before.st_size)


def test_an_export_without_events_says_so(drpo: Drpo, finished: Path) -> None:
    (finished / "done" / "events.jsonl").unlink()
    assert "no events" in drpo("export", "done", "--output", "out").out
    assert drpo("optimize", *SMALL, "--depth", "2", "--thread-id", "u", "--display", "none", "--disable-log").code == 0
    assert "no events" in drpo("export", "u", "--output", "out").out
    assert list(Path("out").rglob("events*")) == []


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_exported(drpo: Drpo, finished: Path) -> None:
    change("""UPDATE store SET value = '{"thread_id": "broken"}' WHERE prefix = 'drpo.runs' AND key = 'broken'""")
    outcome = drpo("export", "--all", "--output", "out")
    assert outcome.code == 1
    assert "broken: not exported: " in outcome.out
    assert outcome.err == "error: 1 of 2 runs could not be exported.\n"
    assert (Path("out") / "done" / "result.json").is_file()


def test_a_run_is_exported_under_the_name_that_it_is_kept_under(drpo: Drpo, finished: Path) -> None:
    renamed = "json_remove(json_set(value, '$.thread_id', '../x'), '$.drpo_sum')"
    change(f"UPDATE store SET value = {renamed} WHERE prefix = 'drpo.runs' AND key = 'broken'")
    assert drpo("export", "--all", "--output", "out/put").code == 0
    assert {path.name for path in Path("out").iterdir()} == {"put"}
    assert {path.name for path in Path("out/put").iterdir()} == {"done", "broken"}


def test_one_run_or_all_is_exported_and_not_neither(drpo: Drpo, finished: Path) -> None:
    assert drpo("export", "--output", "out").code == 2
    assert drpo("export", "done", "--all", "--output", "out").code == 2
