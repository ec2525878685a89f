"""Placeholders of a prompt that is a template: found, compared and filled. Pure.

Three styles: ``{name}`` with doubled literal braces, as in ``str.format``; ``{{name}}``, as in Mustache and Jinja; and
``$name`` or ``${name}`` with a doubled literal dollar, as in ``string.Template``. Only plain names are placeholders:
a format specification, an attribute or a section needs the app's own engine, and is refused rather than guessed at.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from string import Formatter, Template
from typing import Literal

from drpo_graph.errors import DRPOError, SettingsError
from drpo_graph.records import PlaceholderStyle

FieldStyle = Literal["format", "mustache", "dollar"]
STYLES: tuple[FieldStyle, ...] = ("format", "mustache", "dollar")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MUSTACHE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_MARK_BY_STYLE: Mapping[FieldStyle, str] = {"format": "{%s}", "mustache": "{{%s}}", "dollar": "$%s"}
_Piece = tuple[str, str | None]
"""Literal text, then perhaps the name of a placeholder."""


class TemplateSyntaxError(DRPOError):
    """A text is no template of its style; the message says why, in a clause."""


def find_style(prompt: str, setting: PlaceholderStyle) -> FieldStyle | None:
    """Return the style of a prompt's placeholders, ``None`` when it has none and need have none.

    Args:
        prompt: The initial prompt.
        setting: What the user says of it.

    Raises:
        SettingsError: it is no template of the style that is set, has no placeholder of it, or could be of several.
    """
    if setting == "none":
        return None
    if setting != "auto":
        try:
            if count_placeholders(prompt, setting):
                return setting
        except TemplateSyntaxError as error:
            raise SettingsError(f"placeholders={setting!r}: the initial prompt cannot be read so: {error}.") from error
        raise SettingsError(
            f"placeholders={setting!r}: the initial prompt has none like {mark('name', setting)}. Write them so, or "
            "leave the setting out."
        )
    found = [style for style in STYLES if _has_placeholders(prompt, style)]
    if len(found) > 1:
        raise SettingsError(
            f"placeholders='auto': the initial prompt could be read as {' or '.join(found)}. Name one of them."
        )
    return found[0] if found else None


def count_placeholders(prompt: str, style: FieldStyle) -> Counter[str]:
    """Return how often each placeholder stands in a prompt.

    Raises:
        TemplateSyntaxError: the prompt is no template of this style.
    """
    return Counter(name for _, name in _read(prompt, style) if name is not None)


def describe_changes(prompt: str, parent: str, style: FieldStyle) -> str | None:
    """Return what is wrong with a rewrite's placeholders, or ``None``: it has its parent's, and those alone.

    One that stood once must stand once; one that was repeated may stand any number of times.
    """
    wanted = count_placeholders(parent, style)
    try:
        found = count_placeholders(prompt, style)
    except TemplateSyntaxError as error:
        return f"the prompt is a template, and cannot be read as one any more: {error}"
    names_by_problem = {
        "missing": [name for name in wanted if name not in found],
        "not in the original": [name for name in found if name not in wanted],
        "repeated": [name for name, number in found.items() if number > 1 == wanted[name]],
    }
    told = "; ".join(
        f"{problem}: {', '.join(mark(name, style) for name in names)}"
        for problem, names in names_by_problem.items()
        if names
    )
    return f"the prompt must keep the placeholders of the original, each as it stands there ({told})" if told else None


def fill(prompt: str, style: FieldStyle, values: Mapping[str, str]) -> str:
    """Return the prompt with its placeholders filled, in one pass: a value that looks like one stays as it is.

    Raises:
        TemplateSyntaxError: the prompt is no template of this style.
        KeyError: a placeholder has no value.
    """
    return "".join(literal + ("" if name is None else values[name]) for literal, name in _read(prompt, style))


def as_format(prompt: str, style: FieldStyle | None) -> str:
    """Return the prompt as ``str.format`` takes it: placeholders as ``{name}``, literal braces doubled.

    Raises:
        TemplateSyntaxError: the prompt is no template of this style.
    """
    pieces = [(prompt, None)] if style is None else _read(prompt, style)
    return "".join(
        literal.replace("{", "{{").replace("}", "}}") + ("" if name is None else mark(name, "format"))
        for literal, name in pieces
    )


def mark(name: str, style: FieldStyle) -> str:
    """Return a placeholder as it is written."""
    return _MARK_BY_STYLE[style] % name


def _has_placeholders(prompt: str, style: FieldStyle) -> bool:
    try:
        return bool(count_placeholders(prompt, style))
    except TemplateSyntaxError:
        return False


def _read(prompt: str, style: FieldStyle) -> Iterator[_Piece]:
    if style == "format":
        return _read_format(prompt)
    return _read_mustache(prompt) if style == "mustache" else _read_dollar(prompt)


def _read_format(prompt: str) -> Iterator[_Piece]:
    try:
        # Literal braces come out single, as the app's own `format` will have them.
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise TemplateSyntaxError(f"{error}; literal braces are doubled, {{{{ and }}}}") from error
    for literal, name, specification, conversion in parts:
        if name is not None and (specification or conversion or not _NAME.fullmatch(name)):
            raise TemplateSyntaxError(f"{{{name}...}} is no plain {{name}}; literal braces are doubled, {{{{ and }}}}")
        yield literal, name


def _read_mustache(prompt: str) -> Iterator[_Piece]:
    end = 0
    for found in _MUSTACHE.finditer(prompt):
        name = found[1].strip()
        if not _NAME.fullmatch(name):
            raise TemplateSyntaxError(f"{found[0][:40]!r} is no plain {{{{name}}}}")
        yield prompt[end : found.start()], name
        end = found.end()
    yield prompt[end:], None


def _read_dollar(prompt: str) -> Iterator[_Piece]:
    if not Template(prompt).is_valid():
        raise TemplateSyntaxError("a '$' begins no name; a literal one is doubled, $$")
    end = 0
    for found in Template.pattern.finditer(prompt):
        yield prompt[end : found.start()] + (found["escaped"] or ""), found["named"] or found["braced"]
        end = found.end()
    yield prompt[end:], None
