"""A prompt that is a template, on the command line: what is wrong is told before anything is loaded or asked."""

from pathlib import Path

import pytest

from tests.support.command import SMALL, Drpo, assert_one_line, read_result
from tests.support.fake_server import FakeServer

OPTIMIZE = ("optimize", "q.csv", *SMALL, "--display", "none", "--initial-prompt", "Help {user}.")


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_value_that_is_missing_is_told_in_one_line(
    more: tuple[str, ...], drpo: Drpo, folder: Path, world: FakeServer
) -> None:
    (folder / "q.csv").write_text("text,values.user\nWhy?,Ann\nHow?,\n")
    before = len(world.log)
    assert_one_line(drpo(*OPTIMIZE, "--placeholders", "format", *more), 2, "1 of 2 queries", "'q-002': user")
    assert len(world.log) == before
    assert not (folder / "drpo_runs").exists()


def test_template_stays_one_with_a_value_for_all(drpo: Drpo, folder: Path) -> None:
    (folder / "q.csv").write_text("text,values.user\nWhy?,Ann\nHow?,\n")
    shared = ("--placeholders", "format", "--set", 'placeholder_values={"user": "you"}')
    assert drpo(*OPTIMIZE, *shared, "--depth", "2", "--n-actions", "1", "--thread-id", "t").code == 0
    assert "{user}" in read_result(folder / "drpo_runs").system_prompt
