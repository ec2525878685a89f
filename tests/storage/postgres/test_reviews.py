"""A pause in a database is what it is in a file, sealed or not."""

import json
import secrets

import pytest

from tests.support.command import MODEL, Drpo, list_runs
from tests.support.postgres import dump

EDIT = "You are an assistant whose answers Ada has improved."
SEARCH = (*MODEL, "--depth", "3", "--n-actions", "3", "--beam-size", "2", "--queries-per-level", "2", "--seed", "5")
QUIET = ("--display", "none")


@pytest.mark.parametrize("is_sealed", [False, True])
def test_pause_is_kept_and_ended_by_a_decision(
    is_sealed: bool, drpo: Drpo, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_sealed:
        monkeypatch.setenv("DRPO_ENCRYPTION_KEY", secrets.token_hex(32))
    place = ("--checkpoint", uri)
    assert drpo("optimize", *SEARCH, "--approve", "--thread-id", "t", *QUIET, *place).code == 4
    assert list_runs(drpo, *place) == {"t": "waiting"}
    candidate_id = json.loads(drpo("review", "t", "--json", *place).out)["candidates"][0]["id"]
    edit = ("--edit", f"{candidate_id}={EDIT}", "--author", "Ada")
    assert drpo("review", "t", *edit, *QUIET, *place).code == 4
    assert drpo("review", "t", "--approve", "--author", "Ada", *QUIET, *place).code == 0
    tree = json.loads(drpo("show", "t", "--json", *place).out)["tree"]
    assert [(one["prompt"], one["author"]) for one in tree if one["origin"] == "human"] == [(EDIT, "Ada")]
    assert ("Ada has improved" in str(dump(uri))) is not is_sealed
