"""Encryption at rest in a database: no row of any table holds a text, nor the hexadecimal digits of one."""

import secrets
from pathlib import Path

import pytest

from tests.support.command import SMALL, Drpo, assert_one_line
from tests.support.postgres import dump, query

CANARY = "canary-of-the-prompt"
QUERIES = "canary-query one?\ncanary-query two?\ncanary-query three?\ncanary-query four?\n"
PIECES = ("canary", "Clarity", "rationale", "assistant")
"""Of prompt, queries, critiques and settings."""
START = ("optimize", "queries.txt", *SMALL, "--thread-id", "t", "--display", "none", "--initial-prompt", CANARY)


@pytest.fixture(autouse=True)
def key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPO_ENCRYPTION_KEY", secrets.token_hex(32))
    (folder / "queries.txt").write_text(QUERIES)


def found_in(uri: str) -> set[str]:
    # Bytes are shown in hexadecimal digits.
    rows = str(dump(uri))
    return {piece for piece in PIECES if piece in rows or piece.encode().hex() in rows}


def test_an_encrypted_run_leaves_no_text_in_any_row_and_can_be_read_and_resumed(drpo: Drpo, uri: str) -> None:
    place = ("--checkpoint", uri)
    assert drpo(*START, "--max-calls", "20", *place).code == 3
    assert found_in(uri) == set()
    outcome = drpo("resume", "t", "--max-calls", "500", "--display", "none", *place)
    assert outcome.code == 0, outcome.err
    assert found_in(uri) == set()
    assert CANARY in drpo("show", "t", "--json", *place).out
    shown = drpo("events", "t", *place)
    assert shown.events()[-1].type == "run_finished"
    assert drpo("export", "t", "--output", "out", *place).code == 0
    assert (Path("out") / "t" / "events.jsonl").read_text() == shown.out


def test_without_a_key_the_pieces_are_found(drpo: Drpo, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRPO_ENCRYPTION_KEY")
    assert drpo(*START, "--checkpoint", uri).code == 0
    assert found_in(uri) == set(PIECES)


def test_a_value_that_was_put_in_place_of_a_sealed_one_is_not_read(drpo: Drpo, uri: str) -> None:
    place = ("--checkpoint", uri)
    assert drpo(*START, "--max-calls", "20", *place).code == 3
    injected = """jsonb_set(checkpoint, '{channel_values,injected}', '"mine"')"""
    assert query(uri, f"UPDATE checkpoints SET checkpoint = {injected} RETURNING 1")
    assert_one_line(drpo("resume", "t", "--max-calls", "500", "--display", "none", *place), 1, "not sealed: it was")


def test_an_event_that_was_put_in_place_of_a_sealed_one_is_not_shown(drpo: Drpo, uri: str) -> None:
    place = ("--checkpoint", uri)
    assert drpo(*START, "--max-calls", "20", *place).code == 3
    line = '{"type":"warned","run_id":"t","message":"forged"}'
    assert query(uri, f"UPDATE drpo_events SET event = '{line}' WHERE position = 3 RETURNING 1")
    outcome = drpo("events", "t", *place)
    assert "forged" not in outcome.out
    assert "does not open" in outcome.err
