"""Commands that are loaded when they are asked for: a list of them costs no more than its words."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Listed(NamedTuple):
    """A command as a list of commands shows it."""

    place: str
    """``module:name``: a function, or the ``Typer`` of a group."""
    summary: str
    """The first paragraph of its help."""


class LazyGroup(TyperGroup):
    """A group whose commands are listed by their summaries, and loaded one by one."""

    listed: ClassVar[Mapping[str, Listed]] = {}

    def __init__(self, **attributes: object) -> None:
        """Make the group with a stand-in for each command."""
        super().__init__(**attributes)  # type: ignore[arg-type]
        for name, one in self.listed.items():
            self.add_command(TyperCommand(name, help=one.summary), name)

    def resolve_command(  # type: ignore[override]  # The type of the context has no public name.
        self, ctx: typer.Context, args: list[str]
    ) -> tuple[str | None, TyperCommand | TyperGroup | None, list[str]]:
        """Return a command's name, the command itself, and what is left of the arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else self.load(name), rest

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """Return a command of the group, loaded."""
        module, _, attribute = self.listed[name].place.partition(":")
        found = getattr(import_module(module), attribute)
        command = typer.main.get_command(found if isinstance(found, typer.Typer) else _wrap(name, found))
        assert isinstance(command, TyperCommand | TyperGroup)
        command.name = name
        self.add_command(command, name)
        return command


def group_of(commands: Mapping[str, Listed]) -> type[LazyGroup]:
    """Return the class of a group that has these commands."""
    return type("ListedGroup", (LazyGroup,), {"listed": commands})


def _wrap(name: str, function: Callable[..., object]) -> typer.Typer:
    app = typer.Typer(add_completion=False)
    # Typer keeps the line breaks of a docstring: the terminal's width should decide.
    text = "\n\n".join(" ".join(one.split()) for one in (function.__doc__ or "").split("\n\n"))
    app.command(name, help=text)(function)
    return app
