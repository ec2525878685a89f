"""Groups of options: the fields of a record, declared once and taken together by the commands that have them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from typing import Annotated, ClassVar, TypeVar, get_args, get_origin

import typer

FLAG = " "
"""In place of a type: a flag takes no value."""

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that belong together. A field is made with ``option``, or has an annotation that Typer reads."""

    panel: ClassVar[str | None] = None
    """The heading that the help shows them under."""


@dataclass(frozen=True, kw_only=True)
class SettingGroup(OptionGroup):
    """Options that are settings of the same names, but for those that say otherwise."""

    def given(self) -> dict[str, object]:
        """Return the settings that the command line gives, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata.get("is_setting")}
        # An option that may be given several times is an empty list where it is not given.
        return {name: value for name, value in values.items() if value is not None and value != []}


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
) -> _Value:
    """Return a field of a group.

    Args:
        default: What the field is where the option is not given; the type checker takes the field for this.
        metavar: What the help calls the value; ``FLAG`` where there is none.
        help: What the option does.
        flag: Its name, where that is not the field's.
        panel: Its heading, where that is not the group's.
        is_setting: Whether the field's name is a setting's, and its value belongs to ``given``.
        at_least: The least number that is taken.
        at_most: The greatest.
        ignores_case: Whether a choice may be written in capitals or not.
        shows_default: Whether the help tells the default.
    """
    make = partial(
        typer.Option,
        metavar=metavar,
        help=help,
        min=at_least,
        max=at_most,
        case_sensitive=not ignores_case,
        show_default=shows_default,
    )
    return field(default=default, metadata={"make": make, "flag": flag, "panel": panel, "is_setting": is_setting})


class Only:
    """Beside a group: the command takes only these of its options; the others are as if not given."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def takes(self, name: str) -> bool:
        """Return whether the command takes an option."""
        return name in self.names


class Without(Only):
    """Beside a group: the command takes all its options but these, which are as if not given."""

    def takes(self, name: str) -> bool:
        """Return whether the command takes an option."""
        return name not in self.names


def takes_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Return a command whose parameters are the options of its groups, as Typer wants them.

    Args:
        command: A parameter that is annotated with a group, or with ``Annotated[Group, Only(...)]``, is handed the
            group as the command line fills it. Others are as in any command.
    """
    groups: dict[str, tuple[type[OptionGroup], list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        group, choice = _find_group(one.annotation)
        if group is None:
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        options = list(_expand(group, choice))
        groups[one.name] = group, [option.name for option in options]
        parameters.extend(options)

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
        if not choice.takes(one.name):
            continue
        annotation = one.type
        if "make" in one.metadata:
            flag = one.metadata["flag"] or f"--{one.name.replace('_', '-')}"
            made = one.metadata["make"](flag, rich_help_panel=one.metadata["panel"] or group.panel)
            annotation = Annotated[one.type, made]
        yield inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=annotation)
