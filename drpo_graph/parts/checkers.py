"""Answer checkers: from a reply and its reference to an outcome from 0 to 1.

A check that cannot be made leaves its trial without an outcome, and with the reason; it is never a 0.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from pydantic import JsonValue

from drpo_graph.errors import ReplyError, SettingsError
from drpo_graph.models.answers import read_answer
from drpo_graph.parts.identity import name_of
from drpo_graph.parts.loading import load_function
from drpo_graph.parts.numbers import is_same_number, last_number
from drpo_graph.parts.own_code import ask_judge
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Query
from drpo_graph.safety.installing import tell_install
from drpo_graph.safety.text_files import read_text
from drpo_graph.safety.texts import shorten

CRITIC: Final = "critic"
"""The search's critic scores the reply."""
SPECS: Final = (
    *("numeric", "exact", "contains", "regex", "regex:PATTERN", "json", "schema:FILE"),
    *(CRITIC, "module:function"),
)

_PATTERN, _SCHEMA = "regex:", "schema:"
_MAX_JSON_STARTS = 2000
_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_decoder = json.JSONDecoder(strict=False)


class CheckFunction(Protocol):
    """Judges a reply."""

    def __call__(self, query: Query, response: str, reference: str | None) -> Awaitable[float] | float:
        """Return the outcome, from 0 to 1; raise ``ReplyError`` to leave the trial without one, for that reason."""
        ...


@dataclass(frozen=True, slots=True)
class Checker:
    """A way to judge replies."""

    spec: str
    """What names it: part of a run's fingerprint."""
    function: CheckFunction | None
    """``None`` where the critic is asked."""
    find_fault: Callable[[str], str | None] | None = None
    """Says what is wrong with a reference; ``None`` where a reply can be judged without one."""
    is_own: bool = False
    """Whether a function or a file of the user's is behind it, which a resumed run must be given again."""
    expects: tuple[type[Exception], ...] = ()
    """What the function may raise besides ``ReplyError`` where it cannot judge. Anything else stops the run."""
    timeout_s: float | None = None
    """Longest wait for it; the settings' ``timeout_s`` when absent."""


def load_checker(spec: str) -> Checker:
    """Return the checker that a text names: one of :data:`SPECS`.

    Raises:
        SettingsError: there is none of this name, its pattern is none, or its function cannot be loaded.
    """
    if spec == CRITIC:
        return Checker(spec, None)
    if spec in _RULES:
        return Checker(spec, _as_function(_RULES[spec]), _FAULT_FINDERS[spec])
    if spec.startswith(_PATTERN):
        pattern = spec.removeprefix(_PATTERN)
        if (fault := _find_fault_in_pattern(pattern)) is not None:
            raise SettingsError(f"Checker {spec!r}: {fault}.")
        return Checker(spec, _as_function(lambda response, _: re.search(pattern, response) is not None))
    if spec.startswith(_SCHEMA):
        return Checker(spec, _as_function(_load_schema(Path(spec.removeprefix(_SCHEMA)))), is_own=True)
    if ":" not in spec:
        raise SettingsError(f"Checker {spec!r}: expected one of {', '.join(SPECS)}.")
    function = load_function(
        spec,
        what="Checker",
        example="my_checks:is_right",
        signature="(query, response, reference)`, which returns a number from 0 to 1",
        num_given=3,
    )
    return Checker(spec, cast(CheckFunction, function), is_own=True)


def as_checker(given: "str | CheckFunction | Checker") -> Checker:
    """Return a checker that is given as it is, as a function, or by its name.

    Raises:
        SettingsError: the name is none, or what is given is no function.
    """
    if isinstance(given, Checker):
        return given
    if isinstance(given, str):
        return load_checker(given)
    if not callable(given):
        raise SettingsError(f"Checker {given!r}: expected a function of query, response and reference.")
    return Checker(name_of(given), given, is_own=True)


def names_own_code(spec: str) -> bool:
    """Return whether a checker's name is that of a user's function or file: a checkpoint's word loads neither."""
    return (not is_stock(spec) and spec != CRITIC) or spec.startswith(_SCHEMA)


def is_stock(spec: str) -> bool:
    """Return whether a checker is one of ours."""
    return spec in _RULES or spec.startswith((_PATTERN, _SCHEMA))


def to_outcome(reward: float) -> float:
    """Return the outcome that a reward of the critic's, from 1 to 5, stands for."""
    return (reward - MIN_SCORE) / (MAX_SCORE - MIN_SCORE)


async def run_check(checker: Checker, query: Query, response: str, *, reference: str | None, timeout_s: float) -> float:
    """Return what a checker's function says of a reply; ``timeout_s`` is for one that has none of its own.

    Raises:
        ReplyError: it said nothing in time, no outcome, or raised this or what it may raise.
        RewardError: it raised anything else.
    """
    assert checker.function is not None, "the critic is asked by the run"
    outcome = await ask_judge(
        checker.function,
        query,
        response,
        reference,
        called=f"the checker {checker.spec!r}",
        query=query,
        timeout_s=checker.timeout_s if checker.timeout_s is not None else timeout_s,
        expects=checker.expects,
        expects_setting="Checker(..., expects=...)",
    )
    if not isinstance(outcome, int | float) or not 0 <= outcome <= 1:
        told = shorten(repr(outcome), 80)
        raise ReplyError(
            f"the checker {checker.spec!r} gave {told}, expected a number from 0 to 1", kind="reward_error"
        )
    return float(outcome)


def _as_function(rule: Callable[[str, str], bool]) -> CheckFunction:
    async def check(query: Query, response: str, reference: str | None) -> float:
        return float(rule(response, reference or ""))

    return check


def _has_number(response: str, reference: str) -> bool:
    given, wanted = last_number(response), last_number(reference)
    return given is not None and wanted is not None and is_same_number(given, wanted)


def _has_text(response: str, reference: str) -> bool:
    return _fold(response) == _fold(reference)


def _contains_text(response: str, reference: str) -> bool:
    return _fold(reference) in _fold(response)


def _load_schema(path: Path) -> Callable[[str, str], bool]:
    """Return what says whether a response holds a JSON value that fits the schema in a file.

    Raises:
        SettingsError: the file cannot be read, is no schema, or the extra `schema` is not installed.
    """
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise SettingsError(f"Checker 'schema:{path}' needs the extra schema: {tell_install('schema')}.") from error
    try:
        schema = json.loads(read_text(path))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise SettingsError(
            f"Checker 'schema:{path}': {error.strerror or error}. Give a file of JSON Schema."
        ) from error
    except (ValueError, RecursionError, SchemaError) as error:
        raise SettingsError(f"Checker 'schema:{path}': it is no JSON Schema ({shorten(str(error))}).") from error
    validator = kind(schema)

    def fits(response: str, _: str) -> bool:
        return any(validator.is_valid(value) for value in _find_values(response))

    return fits


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def _fits_pattern(response: str, reference: str) -> bool:
    return re.search(reference, response) is not None


def _has_json(response: str, reference: str) -> bool:
    wanted = _parse(reference)
    return any(_is_same_json(value, wanted) for value in _find_values(response))


def _find_values(text: str) -> Iterator[JsonValue]:
    """Yield the JSON values in a reply: all of it, a code fence's, and every object or list in its prose."""
    answer = read_answer(text, is_structured=True).text
    for whole in (answer, *_FENCE.findall(answer)):
        try:
            yield _parse(whole)
        except ValueError:
            continue
    end = 0
    # An opening bracket costs at most the rest of the text: a reply of nothing else must not cost its square.
    for start in [found.start() for found in re.finditer(r"[\[{]", answer)][:_MAX_JSON_STARTS]:
        if start < end:
            continue
        try:
            value, end = _decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        yield value


def _parse(text: str) -> JsonValue:
    """Return the JSON value that a text is.

    Raises:
        ValueError: it is none.
    """
    try:
        value: JsonValue = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _is_same_json(one: JsonValue, other: JsonValue) -> bool:
    """Return whether two values are equal as JSON: 1 and 1.0 are, and neither is ``true``."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same_json(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same_json, one, other))
    return one == other


def _find_fault_in_number(reference: str) -> str | None:
    return None if last_number(reference) is not None else f"{shorten(reference, 60)!r} has no number"


def _find_fault_in_pattern(reference: str) -> str | None:
    try:
        re.compile(reference)
    except (re.error, OverflowError, RecursionError) as error:
        return f"{shorten(reference, 60)!r} is no pattern ({error})"
    return None


def _find_fault_in_json(reference: str) -> str | None:
    try:
        _parse(reference)
    except ValueError as error:
        return f"{shorten(reference, 60)!r} is no JSON ({shorten(str(error), 60)})"
    return None


_RULES: dict[str, Callable[[str, str], bool]] = {
    "numeric": _has_number,
    "exact": _has_text,
    "contains": _contains_text,
    "regex": _fits_pattern,
    "json": _has_json,
}
_FAULT_FINDERS: dict[str, Callable[[str], str | None]] = {
    "numeric": _find_fault_in_number,
    "exact": lambda reference: None,
    "contains": lambda reference: None,
    "regex": _find_fault_in_pattern,
    "json": _find_fault_in_json,
}
