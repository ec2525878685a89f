"""Commands are loaded when they are asked for; the list of them says what their help says."""

from collections.abc import Iterator

import pytest
import typer

from drpo_graph.cli.app import app
from drpo_graph.cli.lazy_commands import LazyGroup
from tests.support.command import Drpo


def groups() -> Iterator[LazyGroup]:
    """Yield the command line and its groups of commands."""
    root = typer.main.get_command(app)
    assert isinstance(root, LazyGroup)
    yield root
    for name in root.listed:
        if isinstance(loaded := root.load(name), LazyGroup):
            yield loaded


def test_every_listed_command_loads_and_its_help_begins_with_its_summary() -> None:
    found = list(groups())
    assert sum(len(group.listed) for group in found) > 20
    for group in found:
        for name, one in group.listed.items():
            assert (group.load(name).help or "").split("\n\n")[0] == one.summary, name


@pytest.mark.parametrize("words", [("--help",), ("oirl", "--help"), ("models", "--help")], ids=" ".join)
def test_help_of_a_group_lists_its_commands(drpo: Drpo, words: tuple[str, ...]) -> None:
    listed = next(group.listed for group in groups() if words[0] in (group.name, "--help"))
    said = drpo(*words)
    assert said.code == 0
    assert [name for name in listed if f" {name} " not in said.out] == []


@pytest.mark.parametrize("words", [("optmize",), ("oirl", "colect"), ("models", "chek")], ids=" ".join)
def test_mistyped_command_of_a_group_is_suggested(drpo: Drpo, words: tuple[str, ...]) -> None:
    said = drpo(*words)
    assert said.code == 2
    assert "Did you mean" in said.err
