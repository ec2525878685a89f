"""What was changed, moved or taken by hand in the database is told as damage; other runs are whole."""

from pathlib import Path

import pytest

from tests.support.command import SMALL, Drpo, assert_one_line
from tests.support.postgres import PostgresServer, query

START = ("optimize", *SMALL, "--depth", "2", "--display", "none")
T, OTHER = "WHERE prefix = 'drpo.t.", "WHERE prefix = 'drpo.other."


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def place(request: pytest.FixtureRequest, drpo: Drpo, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with two finished runs and one that its budget stopped."""
    if request.param:
        monkeypatch.setenv("DRPO_ENCRYPTION_KEY", "a1" * 32)
    uri = postgres.make_database()
    for name in ("t", "other"):
        assert drpo(*START, "--thread-id", name, "--checkpoint", uri).code == 0
    assert drpo(*START, "--thread-id", "half", "--max-calls", "12", "--checkpoint", uri).code == 3
    return uri


CHANGES = {
    "exchanged result": (
        "show t",
        f"UPDATE store SET value = (SELECT value FROM store {OTHER}run' AND key = 'result') {T}run' AND key = 'result'",
    ),
    "no JSON": ("show t", f"""UPDATE store SET value = '{{"json": "{{"}}' {T}candidates' AND key = '0'"""),
    "another form": ("show t", f"UPDATE store SET value = '[1]' {T}candidates' AND key = '0'"),
    "taken candidate": ("show t", f"DELETE FROM store {T}candidates' AND key = '0'"),
    "taken result": ("show t", f"DELETE FROM store {T}run' AND key = 'result'"),
    "exchanged checkpoint": (
        "resume t",
        "UPDATE checkpoint_blobs SET blob = other.blob FROM checkpoint_blobs AS other "
        "WHERE checkpoint_blobs.thread_id = 't' AND other.thread_id = 'other' AND other.channel = 'result' "
        "AND checkpoint_blobs.channel = 'result'",
    ),
    "taken checkpoints": ("resume t", "DELETE FROM checkpoints WHERE thread_id = 't'"),
    "write of another channel": ("resume half", "UPDATE checkpoint_writes SET channel = 'x' WHERE thread_id = 'half'"),
    "taken texts": ("resume half", "DELETE FROM store WHERE prefix = 'drpo.half.candidates'"),
    "taken input": ("resume half", "DELETE FROM store WHERE prefix = 'drpo.half.run' AND key = 'input'"),
}


def test_what_was_changed_by_hand_is_told_and_the_rest_is_read(drpo: Drpo, folder: Path, place: str) -> None:
    kept = {table: f"kept_{table}" for table in ("store", "checkpoints", "checkpoint_blobs", "checkpoint_writes")}
    for table, copy in kept.items():
        query(place, f"CREATE TABLE {copy} AS TABLE {table}")
    for name, (command, statement) in CHANGES.items():
        query(place, statement)
        limits = ("--max-calls", "60", "--display", "none") if command == "resume half" else ()
        outcome = drpo(*command.split(), *limits, "--checkpoint", place)
        assert outcome.code == 1, (name, outcome.err)
        assert_one_line(outcome, 1, "damaged", "drpo export")
        assert drpo("show", "other", "--checkpoint", place).code == 0
        if command == "show t":
            exported = drpo("export", "t", "--output", "out", "--checkpoint", place)
            assert exported.code == 0, exported.err
            assert "damaged" in exported.err
            assert (folder / "out" / "t" / "best_prompt.txt").stat().st_size > 0
        for table, copy in kept.items():
            query(place, f"DELETE FROM {table}")
            query(place, f"INSERT INTO {table} SELECT * FROM {copy}")
    assert drpo("resume", "t", "--display", "none", "--checkpoint", place).code == 0
