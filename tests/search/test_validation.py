"""Whether "better" is said rightly: how often by chance, how often where it is, and on which queries it rests."""

import math
import random
from collections.abc import Callable, Mapping
from statistics import fmean

import pytest

from drpo_graph.records import MIN_QUERIES, ROOT_ID, Validation
from drpo_graph.search.validation import compare_on_validation, find_bound, mean_interval

Draw = Callable[[random.Random], float]
SCORES: Mapping[str, Draw] = {
    "normal": lambda drawn: drawn.gauss(3, 1),
    "whole numbers": lambda drawn: float(drawn.randint(1, 5)),
    "skewed": lambda drawn: max(5 - drawn.expovariate(1.4), 1.0),
    "skewed whole numbers": lambda drawn: float(round(max(5 - drawn.expovariate(1.1), 1.0))),
    "tied": lambda drawn: 3.0 if drawn.random() < 0.8 else float(drawn.randint(1, 5)),
}


def judge(rewards: Mapping[str, list[float | None]], **how: int) -> Validation:
    given = {one: {str(place): reward for place, reward in enumerate(own)} for one, own in rewards.items()}
    return compare_on_validation(given, seed=0, **how)


def draw_share_better(draw: Draw, *, num_queries: int, num_contenders: int, gain: float = 0.0) -> float:
    """Return how often a contender is called better, where the first is so by this much, and the others are not."""
    drawn, trials = random.Random("validation"), 150
    found = 0
    for _ in range(trials):
        queries = [drawn.gauss(0, 0.7) for _ in range(num_queries)]
        rewards: dict[str, list[float | None]] = {
            one: [query + draw(drawn) + (gain if one == "1.0" else 0) for query in queries]
            for one in (ROOT_ID, *(f"1.{number}" for number in range(num_contenders)))
        }
        found += judge(rewards, num_flips=200).is_significant
    return found / trials


# The whole table, over 2,000 trials a cell: scripts/measure_verdict.py.
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("num_queries", "num_contenders"), [(5, 8), (10, 1), (20, 8)])
def test_without_a_difference_a_contender_is_hardly_ever_called_better(
    kind: str, num_queries: int, num_contenders: int
) -> None:
    assert draw_share_better(SCORES[kind], num_queries=num_queries, num_contenders=num_contenders) <= 0.05


@pytest.mark.parametrize("kind", SCORES)
def test_a_great_difference_is_found(kind: str) -> None:
    assert draw_share_better(SCORES[kind], num_queries=20, num_contenders=4, gain=1.5) > 0.5


def test_who_is_better_on_every_query_wins_over_who_has_no_score_on_the_hard_ones() -> None:
    easy, hard = [4.0] * 10, [2.0] * 10
    validation = judge(
        {ROOT_ID: [*easy, *hard], "evasive": [*[3.9] * 10, *[None] * 10], "honest": [*[4.4] * 10, *[2.4] * 10]}
    )
    assert [one.candidate_id for one in validation.comparisons] == ["honest", "evasive"]
    assert [one.difference for one in validation.comparisons] == pytest.approx([0.4, -0.1])
    assert (validation.selected_id, validation.is_significant) == ("honest", True)


def test_one_lucky_query_is_no_lead_over_many_good_ones() -> None:
    validation = judge({ROOT_ID: [2.0] * 20, "lucky": [5.0, *[None] * 19], "good": [2.5] * 20})
    assert validation.selected_id == "good"
    lucky = validation.comparisons[1]
    assert (lucky.num_queries, lucky.difference, lucky.interval_low) == (1, 3.0, None)


@pytest.mark.parametrize("num_contenders", [1, 4, 16])
def test_too_few_queries_say_nothing_and_enough_do(num_contenders: int) -> None:
    drawn = random.Random("few")
    for number in range(2, 11):
        others: dict[str, list[float | None]] = {
            f"1.{one}": [1 + drawn.gauss(0, 0.1) for _ in range(number)] for one in range(1, num_contenders)
        }
        validation = judge({ROOT_ID: [1.0] * number, "1.0": [3.0 + 0.1 * place for place in range(number)], **others})
        assert validation.selected_id == "1.0"
        if number < MIN_QUERIES:
            assert not validation.is_significant
            assert {one.interval_low for one in validation.comparisons} == {None}
        elif num_contenders == 1 or number == 10:
            assert validation.is_significant


def test_the_interval_lies_above_zero_just_where_the_sum_lies_above_the_bound() -> None:
    drawn = random.Random("interval")
    seen = set()
    for _ in range(200):
        values = [drawn.gauss(0.5, 1) for _ in range(9)]
        bound = find_bound([values], generator=random.Random(0))
        interval = mean_interval(values, generator=random.Random(0))
        assert interval is not None
        assert interval[0] < fmean(values) < interval[1]
        is_shown = sum(values) / math.sqrt(sum(one * one for one in values)) > bound
        assert (interval[0] > 0) == is_shown
        seen.add(is_shown)
    assert seen == {True, False}


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 4, [0.0] * 20])
def test_equal_prompts_are_never_better(values: list[float | None]) -> None:
    validation = judge({ROOT_ID: values, "1.0": values})
    assert (validation.selected_id, validation.is_significant) == (ROOT_ID, False)


def test_what_would_show_a_difference_does() -> None:
    drawn = random.Random("plan")
    small: list[float | None] = [drawn.gauss(0.3, 1) for _ in range(12)]
    found = judge({ROOT_ID: [0.0] * 12, "1.0": small})
    needed = found.comparisons[0].needed_queries
    assert not found.is_significant
    assert needed is not None
    assert needed > 12
    many = [small[place % 12] for place in range(needed)]
    assert judge({ROOT_ID: [0.0] * needed, "1.0": many}).is_significant


def test_more_contenders_widen_the_interval() -> None:
    drawn = random.Random("wide")
    own: list[float | None] = [drawn.gauss(0.5, 1) for _ in range(20)]
    widths = []
    for number in (1, 4, 16):
        others: dict[str, list[float | None]] = {
            f"2.{one}": [drawn.gauss(0, 1) for _ in range(20)] for one in range(1, number)
        }
        found = {one.candidate_id: one for one in judge({ROOT_ID: [0.0] * 20, "1.0": own, **others}).comparisons}
        low, high = found["1.0"].interval_low, found["1.0"].interval_high
        assert low is not None
        assert high is not None
        widths.append(high - low)
    assert widths == sorted(widths)


def test_what_sums_in_another_order_differ_by_is_no_difference() -> None:
    # Three criteria, added in two orders; and scores that differ and cancel out.
    dust = judge({ROOT_ID: [2 + 0.2 + 0.1] * 20, "1.0": [0.1 + 0.2 + 2] * 20})
    assert dust.comparisons[0].difference == 0
    swapped = judge({ROOT_ID: [2.3, 3.1, 4.7] * 6, "1.0": [4.7, 2.3, 3.1] * 6})
    assert swapped.comparisons[0].difference == 0
    for validation in (dust, swapped):
        assert (validation.selected_id, validation.is_significant) == (ROOT_ID, False)
        low, high = validation.comparisons[0].interval_low, validation.comparisons[0].interval_high
        assert low == -high if low is not None and high is not None else low == high
