"""Groups of options: a command takes them as records, the command line as single options."""

from typing import Annotated

import pytest
import typer

from drpo_graph.cli.option_groups import (
    FLAG,
    Only,
    OptionGroup,
    SettingGroup,
    Without,
    argument,
    option,
    takes_options,
)


class Size(SettingGroup, panel="Size"):
    """Two settings, and what is none."""

    max_depth: int | None = option(None, "N", help="How deep.", at_least=1)
    names: list[str] | None = option(None, "NAME", help="Called so.", flag="--name -n")
    is_dry: bool = option(False, FLAG, help="Nothing is done.", flag="--dry", is_setting=False)


class Width(Size):
    """The same with another default."""

    max_depth: int | None = option(7, "N", help="How wide.")


def run(command: object, *arguments: str) -> object:
    app = typer.Typer(add_completion=False)
    app.command()(command)  # type: ignore[type-var]
    return typer.main.get_command(app).main(list(arguments), standalone_mode=False)


@takes_options
def show(
    *, place: str = argument("here", "PLACE", help="Where."), size: Size, loud: bool = option(False, FLAG, help="Loud.")
) -> tuple[str, Size, bool]:
    """Return what is given."""
    return place, size, loud


def test_what_is_not_given_has_its_default_and_is_no_setting() -> None:
    assert run(show) == ("here", Size(), False)
    assert Size().given() == {}


def test_options_of_a_group_and_single_ones_stand_side_by_side() -> None:
    given = run(show, "there", "--max-depth", "3", "--loud", "--name", "a", "-n", "b", "--dry")
    assert given == ("there", Size(max_depth=3, names=["a", "b"], is_dry=True), True)


def test_only_settings_that_are_given_are_given() -> None:
    assert Size(max_depth=3, names=[], is_dry=True).given() == {"max_depth": 3}


def test_a_bound_of_an_option_holds() -> None:
    with pytest.raises(Exception, match=r"greater than or equal|not in the range"):
        run(show, "--max-depth", "0")


@pytest.mark.parametrize("choice", [Only("max_depth"), Without("names", "is_dry")])
def test_a_command_may_take_some_options_of_a_group(choice: Only) -> None:
    @takes_options
    def some(*, size: Annotated[Size, choice]) -> Size:
        return size

    assert run(some, "--max-depth", "3") == Size(max_depth=3)
    with pytest.raises(Exception, match="No such option"):
        run(some, "--name", "a")


def test_a_group_that_another_becomes_keeps_its_panel_and_its_other_options() -> None:
    assert Width.panel == "Size"
    assert Width(names=["a"]).given() == {"max_depth": 7, "names": ["a"]}


def test_an_option_that_a_group_has_not_is_told_at_once() -> None:
    def wrong(*, size: Annotated[Size, Only("depth")]) -> None: ...

    with pytest.raises(AssertionError, match="depth"):
        takes_options(wrong)


def test_two_options_of_one_name_are_told_at_once() -> None:
    class Again(OptionGroup):
        """The same name once more."""

        is_dry: bool = option(False, FLAG, help="Nothing is done.")

    def wrong(*, size: Size, again: Again) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name"):
        takes_options(wrong)
