"""What a collection is made of: questions, prompts, and the sides they are on. Read and checked before any call."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from drpo_graph.data.formats import find_format, read_values
from drpo_graph.data.given import GivenRows, iterate_rows
from drpo_graph.data.rows import REFERENCE_FIELDS, AnsweredQuery, Malformed, check_string, is_missing
from drpo_graph.errors import DatasetError, UsageError
from drpo_graph.oirl.demonstrations import Split
from drpo_graph.parts.checkers import Checker
from drpo_graph.records import Query, Record
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.safety.text_files import read_bytes
from drpo_graph.safety.texts import shorten

Placement = Literal["system", "after"]
"""Where the prompt stands: as the system prompt, or after the question in the user's message, as in Prompt-OIRL."""

_BUNDLED: Final = "reasoning_prompts.json"
_MAX_TOLD = 5


class Question(Record):
    """A query with its reference answer."""

    query: Query
    reference: str | None = None
    split: Split = ""


class TriedPrompt(Record):
    """A prompt to be tried."""

    name: str
    """A short label, distinct among the prompts."""
    prompt: str
    split: Split = ""
    """``test``: held out, so that only queries of the test side are asked under it."""


GivenPrompts = GivenRows[str | TriedPrompt | Mapping[str, object]]
"""Texts, rows with a prompt, or as a file has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    """How prompts are tried."""

    num_trials: int = 1
    """Draws of each pair of a query and a prompt."""
    placement: Placement = "system"
    """Where the prompt stands."""
    test_share: float = 0.0
    """The share of the queries that is put on the test side, from 0 to 1; at 0 each stays where its dataset puts it."""
    output: Path | None = None
    """A ``.parquet`` or ``.jsonl`` file for the demonstrations; one in the run's folder when absent."""


class CollectionRunInput(Record):
    """What a run was given; kept with it, so that resuming needs nothing else."""

    questions: tuple[Question, ...] = ()
    """Not stored here, but by number; runs of earlier versions have them here as well."""
    prompts: tuple[TriedPrompt, ...]
    num_trials: int
    placement: Placement
    checker: str
    output: str = ""
    """The file that the demonstrations go to; one in the run's folder when empty."""


def load_tried_prompts(path: Path | None = None) -> tuple[TriedPrompt, ...]:
    """Return the prompts in a file, or the bundled ones.

    Args:
        path: A file as a dataset may be one; of objects with ``prompt`` and, if wanted, ``name`` and ``split``, or of
            texts, one a line.

    Raises:
        DatasetError: it cannot be read, or holds no prompts that can be used.
    """
    place = str(path or _BUNDLED)
    try:
        data = files("drpo_graph.data").joinpath(_BUNDLED).read_bytes() if path is None else read_bytes(path)
    except OSError as error:
        raise DatasetError(f"Prompts {place}: {error.strerror or error}. Give a file that can be read.") from error
    values = read_values(data, find_format(Path(place).suffix.lower(), data, name=place))
    return check_prompts(
        [_read_prompt(value, place, number) for number, (_, value) in enumerate(values, 1)], place=place
    )


def as_prompts(given: GivenPrompts) -> tuple[TriedPrompt, ...]:
    """Return the prompts that Python code holds.

    Raises:
        DatasetError: it is no collection of prompts, or they cannot be used.
    """
    if isinstance(given, Path):
        return load_tried_prompts(given)
    rows = enumerate(iterate_rows(given, label="The prompts"), 1)
    return check_prompts([_read_prompt(value, "The prompts", number) for number, value in rows])


def check_prompts(prompts: Sequence[TriedPrompt], *, place: str = "The prompts") -> tuple[TriedPrompt, ...]:
    """Return the prompts.

    Raises:
        DatasetError: there is none, one is blank, or two share a name or text.
    """
    if not prompts:
        raise DatasetError(f"{place}: there is no prompt, expected at least one.")
    by_name: dict[str, TriedPrompt] = {}
    by_text: dict[str, TriedPrompt] = {}
    keys = KeyFinder()
    for number, one in enumerate(prompts, 1):
        if words := keys.find(one.name, is_name=True) or keys.find(one.prompt):
            raise DatasetError(f"{place}: prompt {number} holds {words}, and prompts are stored. Leave it out.")
        if not one.prompt.strip() or not one.name.strip():
            raise DatasetError(f"{place}: a prompt or its name is blank ({one.name or shorten(one.prompt, 40)!r}).")
        if by_name.setdefault(one.name, one) is not one:
            raise DatasetError(f"{place}: two prompts have the name {one.name!r}. Give one of them another.")
        if (other := by_text.setdefault(one.prompt, one)) is not one:
            raise DatasetError(f"{place}: {other.name!r} and {one.name!r} are the same prompt. Leave one out.")
    return tuple(prompts)


def make_questions(
    given: Iterable[AnsweredQuery], *, checker: Checker, test_share: float = 0.0, seed: int = 0
) -> tuple[Question, ...]:
    """Return the questions of a run, each text once, with the sides they are on.

    Args:
        given: The queries; those with a text that came before are left out.
        checker: What will judge, which says whether references are needed.
        test_share: The share of the texts that is put on the test side, drawn by the seed from the texts alone, not
            their order; at 0 each query stays on the side that its dataset puts it on.
        seed: Of the draw.

    Raises:
        DatasetError: there is no query, a reference is missing or cannot be compared with, equal texts have other
            references, or the share leaves one side empty.
    """
    by_text: dict[str, AnsweredQuery] = {}
    for one in given:
        first = by_text.setdefault(one.query.transcript, one)
        if first.reference != one.reference:
            raise DatasetError(
                f"Queries {first.query.id!r} and {one.query.id!r} have one text and two references. Leave one out."
            )
    if not by_text:
        raise DatasetError("There is no query: expected at least one.")
    _check_references(list(by_text.values()), checker)
    sides = _draw_sides(list(by_text), test_share, seed) if test_share else {}
    return tuple(
        Question(query=one.query, reference=one.reference, split=_as_split(sides.get(text, one.split)))
        for text, one in by_text.items()
    )


def check_sides(questions: Sequence[Question], prompts: Sequence[TriedPrompt]) -> None:
    """Do nothing where every prompt has a query that it is tried on.

    Raises:
        UsageError: a prompt is held out, and there are no test queries; or all are, and there are others.
    """
    held_out = [one.name for one in prompts if one.split == "test"]
    has_test = any(one.split == "test" for one in questions)
    if held_out and not has_test:
        raise UsageError(
            f"Prompt {held_out[0]!r} is held out (split test), and no query is on the test side. Give --test-share, or "
            "queries with a column split."
        )
    if len(held_out) == len(prompts) and any(one.split != "test" for one in questions):
        raise UsageError("Every prompt is held out (split test): queries of the training side would have none.")


def _read_prompt(value: object, place: str, number: int) -> TriedPrompt:
    if isinstance(value, Malformed):
        raise DatasetError(f"{place}:{value.line}: {value.reason}.")
    value = value.model_dump() if isinstance(value, TriedPrompt) else value
    fields = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping) or not isinstance(fields.get("prompt"), str):
        raise DatasetError(f"{place}, prompt {number}: expected a text, or an object with 'prompt'.")
    known = {name: fields[name] for name in ("name", "prompt", "split") if not is_missing(fields.get(name))}
    faults: list[str] = []
    for name, one in known.items():
        check_string(one, name, faults=faults, may_be_blank=True)
    if faults:
        raise DatasetError(f"{place}, prompt {number}: {faults[0]}.")
    try:
        return TriedPrompt.model_validate({"name": f"prompt-{number}", **known})
    except ValidationError as error:
        problem = error.errors()[0]
        raise DatasetError(f"{place}, prompt {number}: {problem['loc'][0]}: {problem['msg']}.") from error


def _check_references(queries: Sequence[AnsweredQuery], checker: Checker) -> None:
    if checker.find_fault is None:
        return
    missing = [one.query.id for one in queries if one.reference is None or not one.reference.strip()]
    if missing:
        raise DatasetError(
            f"The checker {checker.spec!r} needs a reference answer, and {len(missing)} of {len(queries)} queries have "
            f"none ({_list(missing)}). Give one in a column {', '.join(REFERENCE_FIELDS[:-1])} or "
            f"{REFERENCE_FIELDS[-1]}, or choose --checker critic, which needs none."
        )
    faults = [
        f"{one.query.id!r}: {fault}"
        for one in queries
        if (fault := checker.find_fault(one.reference or "")) is not None
    ]
    if faults:
        raise DatasetError(
            f"The checker {checker.spec!r} cannot use {len(faults)} of {len(queries)} references "
            f"({'; '.join(faults[:2])})."
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_TOLD])) + (", ..." if len(names) > _MAX_TOLD else "")


def _draw_sides(texts: Sequence[str], test_share: float, seed: int) -> dict[str, str]:
    """Return each text's side. A text's rank is a hash of its own: others that come or go move few."""
    num_test = round(len(texts) * test_share)
    if not 0 < num_test < len(texts):
        raise DatasetError(
            f"A test share of {test_share:g} puts {num_test} of {len(texts)} queries on the test side, expected at "
            "least one on each. Give another share, or more queries."
        )
    ranked = sorted(texts, key=lambda text: hashlib.sha256(f"{seed}/split/{text}".encode("utf-8", "replace")).digest())
    test = set(ranked[:num_test])
    return {text: "test" if text in test else "train" for text in texts}


def _as_split(side: str) -> Split:
    return "train" if side == "train" else "test" if side == "test" else ""
