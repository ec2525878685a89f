"""Sides and folds by query text."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations, Split
from drpo_graph.oirl.splits import (
    find_leak,
    fold_of,
    held_out_prompts,
    hold_out_prompts,
    merge_queries,
    normalise,
    split_by_query,
    subsample_train,
)


def table(*rows: tuple[str, str, float, Split]) -> Demonstrations:
    return Demonstrations.from_rows(
        Demonstration(query, prompt, outcome, split=split) for query, prompt, outcome, split in rows
    )


def many(num_queries: int = 20, prompts: str = "ab") -> Demonstrations:
    """A table where every second query is there twice, written in two ways."""
    texts = [
        text for n in range(num_queries) for text in ([f"Query {n}?", f"query  {n}?"] if n % 2 else [f"Query {n}?"])
    ]
    return table(*((text, prompt, 1.0, "") for text in texts for prompt in prompts))


def texts_on(found: Demonstrations, side: Split) -> set[str]:
    return {normalise(row.query) for row in found if row.split == side}


@pytest.mark.parametrize(
    "other",
    [
        "IS it 5 o'clock in the café?",
        " Is it\t5 o'clock\n in the  café? ",
        "Is it 5 o’clock in the café?",
        unicodedata.normalize("NFD", "Is it 5 o'clock in the café?"),
        "Is it 5 o'clock\u00a0in the café?",
        "Is it ５ o'clock in the café?",
        "Is it 5 o'clock in the ca\u200bfé?",
    ],
)
def test_a_question_that_is_written_alike_is_the_same(other: str) -> None:
    assert normalise(other) == normalise("Is it 5 o'clock in the café?")


@pytest.mark.parametrize("other", ["Is it 6 o'clock?", "Is it 5 o'clock", "It is 5 o'clock?", "Is it 5. o'clock?"])
def test_another_question_is_another(other: str) -> None:
    assert normalise(other) != normalise("Is it 5 o'clock?")


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_normal_stays_as_it_is_whatever_its_case(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert normalise(f"  {text}\n") == normalise(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_plain_texts_are_treated_as_all_others(text: str) -> None:
    assert normalise(f"{text} é") == f"{normalise(text)} é".strip()


def test_merged_queries_have_the_first_text_and_keep_their_rows() -> None:
    found = merge_queries(table(("A?", "p", 1, ""), ("b?", "p", 0, ""), ("a?", "q", 0, ""), ("c?", "p", 1, "")))
    assert [row[:3] for row in found] == [("A?", "p", 1), ("b?", "p", 0), ("A?", "q", 0), ("c?", "p", 1)]
    assert found.queries == ("A?", "b?", "c?")


@given(share=st.floats(0.06, 0.94), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_split_puts_each_text_on_one_side_and_the_share_on_the_other(share: float, seed: int) -> None:
    found = split_by_query(many(), test_share=share, seed=seed)
    train, test = texts_on(found, "train"), texts_on(found, "test")
    assert not train & test
    assert (len(test), len(train | test)) == (round(20 * share), 20)
    assert find_leak(found) is None


def test_a_split_depends_on_seed_and_texts_but_not_on_their_order() -> None:
    rows = list(many())
    found = [
        texts_on(split_by_query(Demonstrations.from_rows(given), test_share=0.4, seed=seed), "test")
        for given, seed in ((rows, 1), (rows[::-1], 1), (rows, 2))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01, -1.0])
def test_a_split_with_an_empty_side_is_refused(share: float) -> None:
    with pytest.raises(DemonstrationsError, match="expected at least one on each"):
        split_by_query(many(), test_share=share, seed=0)


def test_a_smaller_share_of_training_queries_is_part_of_a_larger_one() -> None:
    whole = split_by_query(many(40), test_share=0.25, seed=0)
    kept = [subsample_train(whole, share=share, seed=3) for share in (0.1, 0.5, 1.0)]
    assert [len(texts_on(one, "train")) for one in kept] == [3, 15, 30]
    assert texts_on(kept[0], "train") < texts_on(kept[1], "train") < texts_on(kept[2], "train")
    assert all(texts_on(one, "test") == texts_on(whole, "test") for one in kept)
    assert len(kept[2]) == len(whole)
    with pytest.raises(DemonstrationsError, match="keeps 0 of 30 training queries"):
        subsample_train(whole, share=0.001, seed=3)
    with pytest.raises(DemonstrationsError, match=r"A share of 1\.5"):
        subsample_train(whole, share=1.5, seed=3)


def test_held_out_prompts_have_no_training_rows() -> None:
    found = table(("x", "a", 1, "train"), ("y", "a", 1, "test"), ("y", "b", 0, "test"), ("x", "c", 0, "train"))
    assert [found.prompts[number] for number in held_out_prompts(found)] == ["b"]
    assert held_out_prompts(many()) == ()


def test_prompts_are_held_out_by_their_training_rows_alone() -> None:
    whole = split_by_query(many(prompts="abcd"), test_share=0.5, seed=0)
    found = hold_out_prompts(whole, num=2, seed=5)
    held_out = held_out_prompts(found)
    assert len(held_out) == 2
    assert found.is_in("test").sum() == whole.is_in("test").sum()
    assert held_out_prompts(hold_out_prompts(whole, num=2, seed=5)) == held_out
    assert len({held_out_prompts(hold_out_prompts(whole, num=2, seed=seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize("num", [0, 2, 3])
def test_one_prompt_is_left_for_training(num: int) -> None:
    with pytest.raises(DemonstrationsError, match=f"{num} prompts cannot be held out: 2 stand on both sides"):
        hold_out_prompts(split_by_query(many(), test_share=0.5, seed=0), num=num, seed=0)


@given(st.lists(st.integers(0, 500), min_size=4, max_size=60), st.integers(0, 5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_folds_are_even_and_hold_whole_queries(queries: list[int], seed: int) -> None:
    ids = np.array([*queries, 1000, 1001, 1002, 1003], dtype=np.int32)
    folds = fold_of(ids, 4, seed=seed)
    by_query = {int(query): {int(one) for one in folds[ids == query]} for query in ids}
    assert all(len(one) == 1 for one in by_query.values())
    sizes = np.bincount([next(iter(one)) for one in by_query.values()], minlength=4)
    assert sizes.max() - sizes.min() <= 1
    assert (fold_of(ids[::-1], 4, seed=seed) == folds[::-1]).all()


def test_folds_need_two_queries_and_no_more_than_there_are() -> None:
    for num_folds in (1, 4):
        with pytest.raises(DemonstrationsError, match=f"3 queries cannot be put into {num_folds} folds"):
            fold_of(np.array([1, 2, 3, 3], dtype=np.int32), num_folds, seed=0)


def test_a_split_without_a_common_query_has_no_leak() -> None:
    assert find_leak(table(("x", "a", 1, "train"), ("y", "a", 0, "test"), ("y", "a", 0, ""))) is None
    assert find_leak(table(("x", "a", 1, ""), ("x", "a", 0, ""))) is None


def test_a_lookup_takes_what_was_best_on_the_same_query_and_the_best_prompt_elsewhere() -> None:
    found = table(
        # The best prompt in training is a.
        *((f"t{n}", "a", 1, "train") for n in range(8)),
        *((f"t{n}", "b", 0, "train") for n in range(8)),
        ("Leaks?", "a", 0, "train"),
        ("Leaks?", "b", 1, "train"),
        # Both failed on this one: it says nothing, and the best prompt counts.
        ("hard", "b", 0, "train"),
        ("hard", "a", 0, "train"),
        ("new", "a", 0, "test"),
        ("new", "b", 1, "test"),
        ("leaks?", "a", 0, "test"),
        ("leaks?", "b", 1, "test"),
        ("leaks?", "c", 1, "test"),
        ("hard", "a", 1, "test"),
        ("hard", "b", 0, "test"),
    )
    leak = find_leak(found)
    assert leak is not None
    assert (leak.num_queries, leak.num_test_queries, leak.num_rows, leak.num_test_rows) == (2, 3, 5, 7)
    assert leak.example == "Leaks?"
    assert [found.prompts[number] for number in leak.lookup_prompt_ids] == ["b", "a", "a"]
    assert (leak.lookup_score, leak.single_score) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert leak.line == (
        "2 of 3 test queries stand on the training side too (5 of 7 test rows): looking up earlier answers alone "
        "scores 66.7% there, the best single prompt 33.3%. Split by query."
    )


def test_a_lookup_chooses_among_what_was_tried_on_both_sides() -> None:
    found = find_leak(
        table(("x", "a", 1, "train"), ("x", "b", 0, "train"), ("x", "b", 1, "test"), ("y", "c", 1, "test"))
    )
    assert found is not None
    assert found.lookup_prompt_ids.tolist() == [1, -1]
    assert (found.lookup_score, found.single_score) == (1.0, 1.0)
    apart = find_leak(table(("x", "a", 1, "train"), ("x", "b", 1, "test")))
    assert apart is not None
    assert (apart.lookup_score, apart.single_score) == (None, None)
    assert apart.line == "1 of 1 test queries stand on the training side too (1 of 1 test rows): split by query."
