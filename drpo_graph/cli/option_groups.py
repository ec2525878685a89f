"""Groups of options: the fields of a record, declared once and taken together by the commands that have them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from functools import wraps
from typing import Annotated, ClassVar, TypeVar, dataclass_transform, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from drpo_graph.settings.settings import UNSET

FLAG = " "
"""In place of a type: a flag takes no value."""

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")


def option(
    default: _Value,
    metavar: str,
    *,
    help: str,
    flag: str | None = None,
    panel: str | None = None,
    is_setting: bool = True,
    at_least: float | None = None,
    at_most: float | None = None,
    ignores_case: bool = False,
    shows_default: bool = True,
    parser: Callable[[str], object] | None = None,
    completes: Callable[..., list[tuple[str, str]]] | None = None,
) -> _Value:
    """Return an option: a field of a group, or the default of a command's parameter.

    Args:
        default: What it is where it is not given; the type checker takes the whole for this.
        metavar: What the help calls the value; ``FLAG`` where there is none.
        flag: Its name, or names with a space between them, where that is not the field's or parameter's.
        panel: Its heading, where that is not the group's.
        is_setting: Whether it belongs to what a ``SettingGroup`` gives.
        ignores_case: Whether a choice may be written in capitals or not.
        shows_default: Whether the help tells the default.
        parser: Reads the value; raises ``typer.BadParameter``.
        completes: What the shell completes its value with.
    """

    def build(name: str, heading: str | None) -> OptionInfo:
        made: OptionInfo = typer.Option(
            *(flag or f"--{name.replace('_', '-')}").split(),
            metavar=metavar,
            help=help,
            rich_help_panel=panel or heading,
            min=at_least,
            max=at_most,
            case_sensitive=not ignores_case,
            show_default=shows_default,
            parser=parser,
            autocompletion=completes,
        )
        return made

    return field(default=default, metadata={"build": build, "is_setting": is_setting})


def parse_sampling(text: str) -> float | str:
    """Return the number that a sampling option gives, or the word for one that is not to be sent, as settings take it.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text.lower() == UNSET:
        return UNSET
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor {UNSET!r}.") from None


def argument(
    default: _Value, metavar: str, *, help: str, completes: Callable[..., list[tuple[str, str]]] | None = None
) -> _Value:
    """Return an argument that may be left out: the default of a command's parameter."""

    def build(name: str, heading: str | None) -> ArgumentInfo:
        made: ArgumentInfo = typer.Argument(metavar=metavar, help=help, autocompletion=completes)
        return made

    return field(default=default, metadata={"build": build})


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that belong together. A field is made with ``option``, or has an annotation that Typer reads."""

    panel: ClassVar[str | None] = None
    """The heading that the help shows them under."""

    def __init_subclass__(cls, panel: str | None = None) -> None:
        if panel is not None:
            cls.panel = panel
        dataclass(frozen=True, kw_only=True)(cls)


class SettingGroup(OptionGroup):
    """Options that are settings of the same names, but for those that say otherwise."""

    def given(self) -> dict[str, object]:
        """Return the settings that the command line gives, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata.get("is_setting")}
        # An option that may be given several times is an empty list where it is not given.
        return {name: value for name, value in values.items() if value is not None and value != []}


class Only:
    """Beside a group: the command takes only these of its options; the others are as if not given."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Without(Only):
    """Beside a group: the command takes all its options but these, which are as if not given."""


def takes_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Return a command whose parameters are single options, as Typer wants them.

    Args:
        command: A parameter that is annotated with a group, or with ``Annotated[Group, Only(...)]``, is handed the
            group as the command line fills it; one whose default is an ``option``, what that is given. Others are as
            Typer has them.
    """
    groups: dict[str, tuple[type[OptionGroup], list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        group, choice = _find_group(one.annotation)
        if group is not None:
            options = list(_expand(group, choice))
            groups[one.name] = group, [option.name for option in options]
            parameters.extend(options)
        elif isinstance(one.default, Field):
            parameters.append(_declare(one.name, one.annotation, made=one.default))
        else:
            parameters.append(one)

    @wraps(command)
    def run(**given: object) -> _Result:
        filled = {name: group(**{one: given.pop(one) for one in names}) for name, (group, names) in groups.items()}
        return command(**given, **filled)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _find_group(annotation: object) -> tuple[type[OptionGroup] | None, Only]:
    """Return the group that a parameter is annotated with, if it is with one, and what is chosen of it."""
    kind, *rest = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(kind, type) and issubclass(kind, OptionGroup)):
        return None, Without()
    choice = next((one for one in rest if isinstance(one, Only)), Without())
    unknown = set(choice.names) - {one.name for one in fields(kind)}
    assert not unknown, f"{kind.__name__} has no {sorted(unknown)}"
    return kind, choice


def _expand(group: type[OptionGroup], choice: Only) -> Iterator[inspect.Parameter]:
    """Yield the parameter of each option that a command takes."""
    for one in fields(group):
        if (one.name in choice.names) != isinstance(choice, Without):
            yield _declare(one.name, one.type, made=one, heading=group.panel)


def _declare(name: str, kind: object, *, made: Field[object], heading: str | None = None) -> inspect.Parameter:
    """Return a parameter that Typer makes an option or argument of."""
    if "build" in made.metadata:
        kind = Annotated[kind, made.metadata["build"](name, heading)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=made.default, annotation=kind)
