"""Read ICL examples: the published JSON form, an object of responses by query, or a dataset with responses."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from drpo_graph.data.datasets import load_rows
from drpo_graph.data.formats import is_dataset_name
from drpo_graph.data.given import GivenRows, make_of_rows
from drpo_graph.data.references import find_answer
from drpo_graph.data.rows import QUERY_FIELDS, REFERENCE_FIELDS
from drpo_graph.errors import DatasetError
from drpo_graph.records import ICLExample, Query
from drpo_graph.safety.text_files import read_text
from drpo_graph.safety.texts import clean_surrogates

_START, _END = "<START>", "<END>"
_BUNDLED = "icl_examples.json"
_MAX_TOLD = 20

RESPONSE_FIELDS: Final = ("response", "output", *REFERENCE_FIELDS)
"""Where a row's response may stand; the first one present counts."""

_FIELDS: Final = QUERY_FIELDS | {*RESPONSE_FIELDS}

GivenExamples = GivenRows[ICLExample | Mapping[str, object]]
"""Examples, rows as a search takes them with a response beside the query, a table of them, or a file."""


def as_examples(given: GivenExamples) -> tuple[ICLExample, ...]:
    """Return the examples that Python code holds, in their order.

    Raises:
        DatasetError: it is no collection of examples, there is none, rows cannot be used, or two share a query.
    """
    if isinstance(given, Path):
        return load_icl_examples(given)
    return _check_distinct(make_of_rows(given, label="example", make=_as_example, known=_FIELDS), name="examples")


def load_icl_examples(path: Path) -> tuple[ICLExample, ...]:
    """Return the examples of a file, in its order: ``{query: response}`` as published, or a dataset with responses.

    The marks ``<START>`` and ``<END>`` around a published response are left out.

    Raises:
        DatasetError: the file cannot be read, is neither, or entries cannot be used; they are named.
    """
    if is_dataset_name(path):
        return _load_rows(path)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(
            f"ICL examples {path}: {reason}. Give a JSON file of responses by query, or a dataset."
        ) from error
    pairs = _parse_json(text, name=str(path))
    # A list of records, or one within an object.
    if type(pairs) is list or (isinstance(pairs, _Pairs) and any(type(one) is list for _, one in pairs)):
        return _load_rows(path)
    return _take_published(pairs, name=str(path))


def bundled_icl_examples() -> tuple[ICLExample, ...]:
    """Return the examples that come with the package."""
    try:
        text = files("drpo_graph.data").joinpath(_BUNDLED).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError) as error:
        raise DatasetError(f"The bundled ICL examples {_BUNDLED} are missing: install drpo-graph again.") from error
    return _take_published(_parse_json(text, name=_BUNDLED), name=_BUNDLED)


def digest_examples(examples: Sequence[ICLExample]) -> str:
    """Return the SHA-256 of examples in their order."""
    pairs = [[example.query, example.response] for example in examples]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _load_rows(path: Path) -> tuple[ICLExample, ...]:
    return _check_distinct(load_rows(path, make=_as_example, known=_FIELDS), name=str(path))


def _as_example(query: Query, record: object, faults: list[str]) -> ICLExample:
    fields = record.model_dump() if isinstance(record, ICLExample) else record
    response = None
    if isinstance(fields, Mapping):
        response = find_answer(fields, RESPONSE_FIELDS, faults=faults, may_be_blank=False)
    if response is None:
        faults.append(f"no response: expected {' or '.join(RESPONSE_FIELDS)}, or an answer in messages")
    return ICLExample(query=query.transcript, response=response or "")


def _check_distinct(examples: tuple[ICLExample, ...], *, name: str) -> tuple[ICLExample, ...]:
    if not examples:
        raise DatasetError("No ICL examples were given: expected at least one.")
    first_by_query: dict[str, int] = {}
    for number, one in enumerate(examples, 1):
        if (first := first_by_query.setdefault(one.query, number)) != number:
            raise DatasetError(f"ICL examples {name}: examples {first} and {number} share a query: keep one of them.")
    return examples


def _parse_json(text: str, *, name: str) -> object:
    try:
        # As pairs, because an object would silently keep the last of two equal queries.
        value: object = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"ICL examples {name}: it is no JSON: {error}.") from error
    return value


def _take_published(pairs: object, *, name: str) -> tuple[ICLExample, ...]:
    if not isinstance(pairs, _Pairs):
        raise DatasetError(f"ICL examples {name}: expected an object of responses by query.")
    if not pairs:
        raise DatasetError(f"ICL examples {name}: there is none in it.")
    problems, response_by_query = [], dict[str, str]()
    for number, (query, response) in enumerate(pairs, 1):
        cleaned = _clean(response) if isinstance(response, str) else ""
        problem = "the same query stands above" if query in response_by_query else _find_problem(query, cleaned)
        if problem:
            problems.append(f"{name}: entry {number}: {problem}")
        response_by_query.setdefault(query, cleaned)
    if problems:
        told = problems[:_MAX_TOLD]
        told += [f"and {len(problems) - len(told)} more"] if len(problems) > len(told) else []
        raise DatasetError(f"ICL examples {name}: {len(problems)} entries cannot be used.", tuple(told))
    return tuple(ICLExample(query=query, response=response) for query, response in response_by_query.items())


def _find_problem(query: str, response: str) -> str | None:
    if not query.strip() or not response:
        return "expected a query and a response, both texts that are not blank"
    if clean_surrogates(query + response) != query + response:
        return "half of a character, a lone surrogate, can neither be stored nor sent"
    return None


class _Pairs(list[tuple[str, object]]):
    """The entries of a JSON object, in their order."""


def _clean(response: str) -> str:
    return response.strip().removeprefix(_START).removesuffix(_END).strip()
