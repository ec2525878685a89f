"""A run whose beginning could not be stored is none, and leaves its name."""

import pytest

from tests.support.command import SMALL, Drpo, assert_one_line, list_runs
from tests.support.postgres import query

START = ("optimize", *SMALL, "--depth", "2", "--thread-id", "t", "--display", "none")


@pytest.mark.parametrize("place", ["NEW.key = 'input'", "NEW.prefix = 'drpo.runs'"])
def test_a_disk_that_is_full_at_the_start_leaves_nothing(place: str, drpo: Drpo, uri: str) -> None:
    checkpoint = ("--checkpoint", uri)
    assert drpo(*START[:-4], "--thread-id", "first", "--display", "none", *checkpoint).code == 0
    query(
        uri,
        f"""
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {place} THEN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END IF;
            RETURN NEW;
        END $$
        """,
    )
    query(uri, "CREATE TRIGGER fill BEFORE INSERT ON store FOR EACH ROW EXECUTE FUNCTION fill()")
    assert_one_line(drpo(*START, *checkpoint), 1, "No space left", "Free space")
    query(uri, "DROP TRIGGER fill ON store")
    assert list_runs(drpo, *checkpoint) == {"first": "done"}
    assert query(uri, "SELECT key FROM store WHERE prefix LIKE 'drpo.t.%'") == []
    assert drpo("resume", "t", "--display", "none", *checkpoint).code == 2
    assert drpo(*START, *checkpoint).code == 0


def test_a_run_that_failed_before_its_first_call_leaves_its_name(
    drpo: Drpo, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = ("--checkpoint", uri)
    with monkeypatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "another-key")
        assert drpo(*START, "--set", "probe=false", *checkpoint).code == 1
    assert list_runs(drpo, *checkpoint) in ({}, {"t": "failed"})
    assert drpo(*START, *checkpoint).code == 0
    assert_one_line(drpo(*START, *checkpoint), 2, "exists already")
