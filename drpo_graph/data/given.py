"""Queries as Python code holds them: texts, records, rows of a table."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from drpo_graph.data.datasets import collect_rows, problems_error
from drpo_graph.data.rows import RowReader
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query


class Frame(Protocol):
    """A data frame of pandas or polars, or a table of PyArrow; none of them is needed."""

    @property
    def columns(self) -> object:
        """What tells a table from a list of texts."""


GivenQueries = Iterable[str | Query | Mapping[str, object]] | Frame
"""Texts, :class:`Query` records, rows as a dataset file has them, a column of texts, or a whole table."""


def as_queries(given: GivenQueries, *, label: str = "query") -> tuple[Query, ...]:
    """Return queries in their order; one without an id has the label and its number.

    Raises:
        DatasetError: it is no such collection, or rows cannot be used; all of them are named.
    """
    problems: list[str] = []
    values = ((f"{label} {number}", value) for number, value in enumerate(iterate_rows(given, label=label), 1))
    found = collect_rows(values, id_prefix=label, reader=RowReader(), problems=problems, places={})
    queries = tuple(query for query, _ in found)
    if problems:
        raise problems_error(label, problems)
    return queries


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
    if isinstance(given, str | bytes | Mapping | Query) or not isinstance(given, Iterable):
        raise DatasetError(f"{label}: expected a list of queries or a table, got one {type(given).__name__}.")
    return given
