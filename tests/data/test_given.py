"""Queries as Python code hands them over."""

from typing import cast

import pytest

from drpo_graph.data.given import GivenQueries, as_queries
from drpo_graph.data.references import as_answered
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query

ROWS = [{"question": "a", "answer": "1"}, {"question": "b", "answer": None}]
EXPECTED = (Query(id="query-001", text="a"), Query(id="query-002", text="b"))
ANSWERED = (EXPECTED[0].model_copy(update={"reference": "1"}), EXPECTED[1])


def test_texts_records_and_rows_may_be_mixed() -> None:
    own = Query(id="x", text="c", values={"user": "Ann"})
    assert as_queries(["a", {"question": "b"}, own]) == (*EXPECTED, own)
    assert as_queries(text for text in ("a", "b")) == EXPECTED


def test_data_frames_and_series_of_pandas_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{**row, "kind": float("nan")} for row in ROWS])
    assert as_queries(frame) == as_queries(frame["question"]) == EXPECTED
    frame.loc[1, "question"] = float("nan")
    with pytest.raises(DatasetError, match="query 2: no text: question is NaN"):
        as_queries(frame)


def test_data_frames_and_series_of_polars_are_read() -> None:
    polars = pytest.importorskip("polars")
    assert as_queries(polars.DataFrame(ROWS)) == ANSWERED
    assert as_queries(polars.DataFrame(ROWS)["question"]) == EXPECTED


def test_tables_of_arrow_are_read() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(ROWS)
    assert as_queries(table) == ANSWERED
    assert as_queries(table["question"]) == EXPECTED


class Cells:
    """A data frame by its interface alone: columns, and records on demand."""

    columns = ("question",)

    def to_dict(self, orient: str) -> list[dict[str, object]]:
        """Return the rows."""
        assert orient == "records"
        return [dict(row) for row in ROWS]


def test_data_frame_is_known_by_its_interface() -> None:
    assert as_queries(Cells()) == ANSWERED
    assert as_answered(Cells()) == tuple(map(AnsweredQuery, ANSWERED, ("1", None)))


def test_rows_that_cannot_be_used_are_named() -> None:
    with pytest.raises(DatasetError) as caught:
        as_queries(cast(GivenQueries, ["a", float("nan"), "\ud83d", {"id": "query-001", "query": "b"}]))
    assert caught.value.problems == (
        "query 2: expected an object or a string, got NaN",
        "query 3: query has half of a surrogate pair, which UTF-8 cannot hold",
        "query 4: id 'query-001' is taken by query 1",
    )


@pytest.mark.parametrize("given", ["one text", {"query": "a"}, Query(id="a", text="a"), 3])
def test_one_query_in_place_of_several_is_refused(given: object) -> None:
    with pytest.raises(DatasetError, match="expected a list of queries or a table, got one"):
        as_queries(cast(GivenQueries, given))


def test_answered_queries_stay_what_they_are() -> None:
    given = [AnsweredQuery(Query(id="x", text="a"), "1", "test")]
    assert as_answered(given) == tuple(given)
