"""The table of trials in memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations, Split

ROW = Demonstration("q", "p", 1.0)
ROWS = [
    Demonstration("q1", "p1", 1.0, model="m", split="train", tokens=12.0, prompt_name="one", confidence=0.5),
    Demonstration("q2", "p2", 0.25, model="n", split="test"),
    Demonstration("q1", "p2", 0.0, model="m", split="train", tokens=0.0, confidence=0.0),
    Demonstration("q3", "p1", 0.5),
]


def table(*rows: Demonstration) -> Demonstrations:
    return Demonstrations.from_rows(rows or ROWS)


def test_rows_come_back_as_they_were_with_a_name_for_each_prompt() -> None:
    found = table()
    assert list(found) == [row._replace(prompt_name="one" if row.prompt == "p1" else "p2") for row in ROWS]
    assert (len(found), found.queries, found.prompts) == (4, ("q1", "q2", "q3"), ("p1", "p2"))
    assert found.models == ("m", "n", "")


texts = st.text(min_size=1, max_size=5).filter(lambda text: bool(text.strip()))
unknown_or_share = st.none() | st.floats(0, 1, width=32)
rows_of_a_table = st.lists(
    st.builds(
        Demonstration,
        query=texts,
        prompt=texts,
        outcome=st.floats(0, 1, width=32),
        model=st.sampled_from(["", "m", "n"]),
        split=st.sampled_from(["", "train", "test"]),
        tokens=st.none() | st.floats(0, 1e6, width=32),
        prompt_name=st.just(""),
        confidence=unknown_or_share,
    ),
    min_size=1,
    max_size=20,
)


@given(rows_of_a_table)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_can_be_used_comes_back(rows: list[Demonstration]) -> None:
    assert [row._replace(prompt_name="") for row in table(*rows)] == rows


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"outcome": 1.01}, "outcome 1.01, expected a number from 0 to 1"),
        ({"outcome": -0.5}, "outcome -0.5, expected a number from 0 to 1"),
        ({"outcome": float("nan")}, "outcome nan, expected a number from 0 to 1"),
        ({"outcome": float("inf")}, "outcome inf, expected a number from 0 to 1"),
        ({"outcome": "right"}, "outcome 'right', expected a number from 0 to 1"),
        ({"outcome": None}, "outcome None, expected a number from 0 to 1"),
        ({"outcome": 10**400}, "outcome 1000"),
        ({"query": " \n"}, "the query is blank, expected a text"),
        ({"query": None}, "the query is None, expected a text"),
        ({"prompt": ""}, "the prompt is blank, expected a text"),
        ({"prompt": 7}, "the prompt is 7, expected a text"),
        ({"prompt": ["x\ny" * 500]}, "the prompt is ['x"),
        ({"split": "valid"}, "split 'valid', expected train, test or none"),
        ({"split": ["train"]}, "split ['train'], expected train, test or none"),
        ({"tokens": -1.0}, "tokens -1.0, expected a number from 0 on"),
        ({"tokens": float("inf")}, "tokens inf, expected a number from 0 on"),
        ({"tokens": 1e39}, "tokens 1e+39, expected a number from 0 on"),
        ({"tokens": "many"}, "tokens 'many', expected a number from 0 on"),
        ({"confidence": 2}, "confidence 2, expected a number from 0 to 1"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_in_one_line(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(DemonstrationsError) as raised:
        table(ROW, ROW._replace(**changed), ROW._replace(**changed))
    (line,) = str(raised.value).splitlines()
    assert f"row 2: {problem}" in line
    assert len(line) < 300


def test_each_kind_of_problem_is_named_once() -> None:
    wrong: Any = {"query": "", "outcome": 3, "split": "x"}
    with pytest.raises(DemonstrationsError) as raised:
        table(*[ROW, ROW._replace(**wrong)] * 5)
    assert len(raised.value.problems) == 3


def test_no_row_at_all_is_told() -> None:
    with pytest.raises(DemonstrationsError, match="There are no demonstrations"):
        Demonstrations.from_rows([])


def test_an_outcome_may_be_a_truth_value_or_numpys() -> None:
    found = table(ROW._replace(outcome=True), ROW._replace(outcome=np.float64(0.5)), ROW._replace(outcome=np.int8(0)))
    assert found.outcomes.tolist() == [1.0, 0.5, 0.0]


def test_half_a_surrogate_pair_is_replaced_wherever_it_stands() -> None:
    found = table(Demonstration("q\ud800", "p\udc00", 1.0, model="m\ud800", prompt_name="n\udfff"), ROW)
    assert found.queries[0] == found.queries[0].encode().decode() == "q\ufffd"
    assert (found.prompts[0], found.models[0], found.prompt_names[0]) == ("p\ufffd", "m\ufffd", "n\ufffd")
    assert table(ROW._replace(query="q\ud800"), ROW._replace(query="q\ufffd")).queries == ("q\ufffd",)


def test_a_prompt_has_the_first_name_that_it_was_given() -> None:
    names = ["", "first", "second"]
    assert table(*(ROW._replace(prompt_name=name) for name in names)).prompt_names == ("first",)
    assert table(ROW._replace(prompt="Think  step by step. " * 9)).prompt_names[0].endswith("...")


def test_a_grid_holds_means_over_repeated_trials() -> None:
    trials = [("a", "x", 1.0), ("a", "x", 0.0), ("a", "x", 0.5), ("b", "y", 0.25), ("b", "x", 0.0)]
    grid = table(*(Demonstration(*one) for one in trials)).grid()
    np.testing.assert_array_equal(grid.mean, [[0.5, np.nan], [0.0, 0.25]])
    np.testing.assert_array_equal(grid.num_trials, [[3, 0], [1, 1]])


def test_rows_are_taken_by_mask_and_by_number_with_their_numbers() -> None:
    found = table()
    kept = found.take(found.is_in("train"))
    assert kept.query_ids.tolist() == [0, 0]
    assert (kept.queries, kept.prompts) == (found.queries, found.prompts)
    assert list(found.take(np.array([3, 1], dtype=np.intp))) == [list(found)[3], list(found)[1]]


def test_what_no_row_names_is_dropped_and_rows_stay_as_they_were() -> None:
    part = table().take(np.array([1, 3], dtype=np.intp))
    found = part.without_unused()
    assert (found.queries, found.prompts, found.models) == (("q2", "q3"), ("p1", "p2"), ("n", ""))
    assert list(found) == list(part)
    assert list(found.without_unused()) == list(part)


@pytest.mark.parametrize("side", ["", "train", "test"])
def test_sides_are_told_apart_and_replaced(side: Split) -> None:
    found = table()
    assert found.is_in(side).tolist() == [row.split == side for row in ROWS]
    assert {row.split for row in found.with_splits(np.ones(4, dtype=np.int8))} == {"train"}


@pytest.mark.parametrize(
    "column", ["query", "prompt", "outcome", "model", "split", "tokens", "prompt_name", "confidence"]
)
def test_the_digest_changes_with_every_column(column: str) -> None:
    other: Any = {"outcome": 0.75, "split": "", "tokens": 13.0, "confidence": 0.75}.get(column, "other")
    changed = [ROWS[0]._replace(**{column: other}), *ROWS[1:]]
    assert table(*changed).digest() != table().digest()
    assert table(*ROWS).digest() == table().digest()


def test_the_digest_tells_where_a_text_ends() -> None:
    assert (
        table(ROW._replace(query="a\0b", prompt="c")).digest() != table(ROW._replace(query="a", prompt="b\0c")).digest()
    )
    found = table()
    moved = replace(found, queries=("q1", "q2"), prompts=("q3", "p1", "p2"))
    assert moved.digest() != found.digest()
