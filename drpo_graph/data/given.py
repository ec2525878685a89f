"""Queries as Python code holds them: texts, records, rows of a table, the path of a file."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Protocol

from drpo_graph.data.datasets import Make, T, collect_rows, load_rows, problems_error, take_query, without_sweeps
from drpo_graph.data.rows import QUERY_FIELDS, AnsweredQuery, RowReader
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query, Record


class Frame(Protocol):
    """A data frame of pandas or polars, or a table of PyArrow; none of them is needed."""

    @property
    def columns(self) -> object:
        """What tells a table from a list of texts."""


GivenRows = Iterable[T] | Frame | Path
"""Several of something, a table of them, or a file as :func:`~drpo_graph.data.datasets.load_queries` reads it."""
GivenQueries = GivenRows[str | Query | Mapping[str, object]]
"""Texts, :class:`Query` records, rows as a dataset file has them, a column of texts, a whole table, or a file."""


def as_queries(given: GivenQueries, *, label: str = "query") -> tuple[Query, ...]:
    """Return queries in their order; one without an id has the label and its number.

    Raises:
        DatasetError: it is no such collection, or rows cannot be used; all of them are named.
    """
    return make_of_rows(given, label=label, make=take_query)


def make_of_rows(
    given: GivenRows[object], *, label: str, make: Make[T], known: Set[str] = QUERY_FIELDS
) -> tuple[T, ...]:
    """Return what is made of queries and their rows, in their order; a row is named by the label and its number.

    Args:
        known: The fields that are read; a warning tells of others.

    Raises:
        DatasetError: it is no such collection, or rows cannot be used; all of them are named.
    """
    if isinstance(given, Path):
        return load_rows(given, make=make, known=known)
    problems: list[str] = []
    values = ((f"{label} {number}", value) for number, value in enumerate(iterate_rows(given, label=label), 1))
    found = collect_rows(
        values, id_prefix=label, reader=RowReader(), make=make, problems=problems, places={}, known=known
    )
    with without_sweeps():
        made = tuple(found)
    if problems:
        raise problems_error(label, problems)
    return made


def iterate_rows(given: Iterable[object] | Frame, *, label: str) -> Iterable[object]:
    """Return the rows of a collection or table, one after another.

    Raises:
        DatasetError: it is a single text or record, or nothing that holds several.
    """
    rows: Iterable[object]
    for method in ("to_dicts", "to_pylist"):
        if hasattr(given, method):
            rows = getattr(given, method)()
            return rows
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        rows = given.to_dict("records")
        return rows
    if isinstance(given, str | bytes | Mapping | Record | AnsweredQuery) or not isinstance(given, Iterable):
        raise DatasetError(
            f"{label}: expected a list of queries or a table, got one {type(given).__name__}; a file is given as a "
            "pathlib.Path."
        )
    return given
