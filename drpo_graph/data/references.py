"""Queries with reference answers, as datasets hold them beside each other."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TextIO

from drpo_graph.data.conversations import find_messages, read_exchange
from drpo_graph.data.datasets import load_rows
from drpo_graph.data.given import GivenRows, make_of_rows
from drpo_graph.data.rows import REFERENCE_FIELDS, TEXT_FIELDS, AnsweredQuery, as_text, check_string, is_missing
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query

GivenAnswered = GivenRows[str | Query | AnsweredQuery | Mapping[str, object]]
"""Queries as a search takes them, with references or without."""


def load_answered_queries(source: str | Path, *, stdin: TextIO | None = None) -> tuple[AnsweredQuery, ...]:
    """Return the queries of one dataset with their references, in file order.

    Args:
        source: What :func:`~drpo_graph.data.datasets.load_queries` takes.
        stdin: Read instead of ``sys.stdin`` when ``source`` is ``-``.

    Raises:
        DatasetError: the source cannot be read, is empty, or has malformed records.
    """
    return load_rows(source, stdin=stdin, make=_add_reference)


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


def as_answered(given: GivenAnswered) -> tuple[AnsweredQuery, ...]:
    """Return queries of Python code with their references, as :func:`load_answered_queries` does those of a file.

    Raises:
        DatasetError: it is no collection of queries, or rows cannot be used; all of them are named.
    """
    return make_of_rows(given, label="query", make=_add_reference)


def find_answer(
    record: Mapping[str, object], names: Sequence[str], *, faults: list[str], may_be_blank: bool = True
) -> str | None:
    """Return what a record gives as an answer to its query; what is no text as JSON, ``None`` where there is none.

    Args:
        record: A row of a dataset.
        names: The fields in which it may stand; the first one that holds something counts. A conversation has it after
            its last user turn.
        faults: What is wrong with it is added.
        may_be_blank: Whether an empty one is none of the faults.
    """
    name = next((one for one in names if not is_missing(record.get(one))), None)
    given = record[name] if name is not None else None
    if name is None and (found := find_messages(record, TEXT_FIELDS)) is not None:
        name, given = f"{found[0]}: the answer", read_exchange(found[1], faults=[]).answer
    if name is None or given is None:
        return None
    return check_string(as_text(given), name, faults=faults, may_be_blank=may_be_blank)


def _add_reference(query: Query, record: object, faults: list[str]) -> AnsweredQuery:
    if isinstance(record, AnsweredQuery):
        record = record._asdict()
    if not isinstance(record, Mapping):
        return AnsweredQuery(query, query.reference or None)
    split = record.get("split")
    reference = find_answer(record, REFERENCE_FIELDS, faults=faults)
    return AnsweredQuery(query, reference, split if split in ("train", "test") else "")
