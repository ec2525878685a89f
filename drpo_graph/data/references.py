"""Queries with reference answers, as datasets hold them beside each other."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple, TextIO, cast

from drpo_graph.data.conversations import find_messages, read_exchange
from drpo_graph.data.datasets import load_records
from drpo_graph.data.given import GivenQueries, as_queries, iterate_rows
from drpo_graph.data.rows import TEXT_FIELDS, is_missing
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query
from drpo_graph.safety.texts import clean_surrogates

REFERENCE_FIELDS: Final = ("answer", "reference", "target", "expected_output", "label")
"""Where a record's reference answer may stand; the first one present counts."""


class AnsweredQuery(NamedTuple):
    """A query with what is known of its answer."""

    query: Query
    reference: str | None
    """The right answer, where the dataset gives one. What is no text stands as JSON."""
    split: str = ""
    """The side that the dataset puts it on: ``train``, ``test`` or none."""


def load_answered_queries(source: str | Path, *, stdin: TextIO | None = None) -> tuple[AnsweredQuery, ...]:
    """Return the queries of one dataset with their references, in file order.

    Args:
        source: What :func:`~drpo_graph.data.datasets.load_queries` takes.
        stdin: Read instead of ``sys.stdin`` when ``source`` is ``-``.

    Raises:
        DatasetError: the source cannot be read, is empty, or has malformed records.
    """
    return tuple(_add_reference(query, record) for query, record in load_records(source, stdin=stdin))


def load_bundled_problems() -> tuple[AnsweredQuery, ...]:
    """Return the word problems that come with the package, each with its answer, a whole number."""
    try:
        text = files("drpo_graph.data").joinpath("word_problems.jsonl").read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError) as error:
        raise DatasetError("The bundled word problems are missing: install drpo-graph again.") from error
    records = map(json.loads, text.splitlines())
    return tuple(
        AnsweredQuery(Query(id=f"problem-{number:02d}", text=record["query"]), record["answer"])
        for number, record in enumerate(records, 1)
    )


def as_answered(given: GivenQueries | Iterable[AnsweredQuery]) -> tuple[AnsweredQuery, ...]:
    """Return queries of Python code with their references, as :func:`load_answered_queries` does those of a file.

    Raises:
        DatasetError: it is no collection of queries, or rows cannot be used.
    """
    rows = list(iterate_rows(given, label="query"))
    answered = [one for one in rows if isinstance(one, AnsweredQuery)]
    if len(answered) == len(rows):
        return tuple(answered)
    return tuple(
        _add_reference(query, row) for query, row in zip(as_queries(cast(GivenQueries, rows)), rows, strict=True)
    )


def _add_reference(query: Query, record: object) -> AnsweredQuery:
    if not isinstance(record, Mapping):
        return AnsweredQuery(query, None)
    given = next((record[name] for name in REFERENCE_FIELDS if not is_missing(record.get(name))), None)
    if given is None and (found := find_messages(record, TEXT_FIELDS)) is not None:
        given = read_exchange(found[1], faults=[]).answer
    reference = given if given is None or isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    if reference is not None and clean_surrogates(reference) != reference:
        raise DatasetError(f"Query {query.id!r}: its reference has half of a surrogate pair, which UTF-8 cannot hold.")
    split = record.get("split")
    return AnsweredQuery(query, reference, split if split in ("train", "test") else "")
