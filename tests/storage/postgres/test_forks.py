"""A fork in a database is what it is in a file, sealed or not."""

import json
import secrets

import pytest

from tests.support.command import SMALL, Drpo, assert_one_line, finished_keys
from tests.support.fake_server import FakeServer
from tests.support.postgres import dump

QUIET = ("--display", "none")


@pytest.mark.parametrize(("level", "is_sealed"), [(0, False), (1, True)])
def test_unchanged_fork_makes_no_call_and_ends_alike(
    level: int, is_sealed: bool, drpo: Drpo, uri: str, world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_sealed:
        monkeypatch.setenv("DRPO_ENCRYPTION_KEY", secrets.token_hex(32))
    place = ("--checkpoint", uri)
    assert drpo("optimize", *SMALL, "--thread-id", "t", *QUIET, *place).code == 0
    num_calls = len(finished_keys(world))
    outcome = drpo("fork", "t", "--level", str(level), "--thread-id", "f", *QUIET, *place)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(finished_keys(world)) == num_calls
    former, forked = (json.loads(drpo("show", one, "--json", *place).out) for one in "tf")
    assert (forked["tree"], forked["beams"]) == (former["tree"], former["beams"])
    assert_one_line(drpo("fork", "t", "--level", "9", *QUIET, *place), 2, "levels 0, 1, 2")
    assert ("Clarity" in str(dump(uri))) is not is_sealed
