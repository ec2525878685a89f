"""Money and what is left, where they are known: in the panel, in the lines, in the summary."""

import io
from collections.abc import Iterator

import pytest

from drpo_graph.display import make_display
from drpo_graph.display.formatting import format_remaining
from drpo_graph.display.panel import render_panel
from drpo_graph.display.summary import render_summary
from drpo_graph.display.view import RunView
from drpo_graph.events.schema import CallFinished, Event, LevelFinished, Remaining
from drpo_graph.records import Usage
from tests.display.sample_events import START, page_of, run_stopped, sample_events, sample_result

REMAINING = Remaining(calls=120, tokens=81_000, cost_usd=0.3)


def priced_events(*, cost: float | None = 0.01) -> Iterator[Event]:
    total = 0.0
    for event in sample_events():
        match event:
            case CallFinished():
                total += cost or 0.0
                yield event.model_copy(update={"cost_usd": cost})
            case LevelFinished():
                known = {"cost_usd": None if cost is None else total, "remaining": REMAINING}
                yield event.model_copy(update=known)
            case _:
                yield event


def level_lines(events: Iterator[Event]) -> list[str]:
    out = io.StringIO()
    display = make_display("plain", stdout=out, stderr=io.StringIO())
    for event in events:
        display.handle(event)
    return [line for line in out.getvalue().splitlines() if line.startswith("level ")]


def test_a_level_s_line_says_what_was_spent_and_what_is_left() -> None:
    lines = level_lines(priced_events())
    costs = [float(line.split("cost $")[1].split()[0]) for line in lines]
    assert costs == sorted(costs)
    assert costs[0] > 0
    assert all("left 120 calls, 81k tokens, $0.30" in line for line in lines)


@pytest.mark.parametrize("cost", [None, 0.0])
def test_nothing_is_said_of_money_that_is_unknown_or_none(cost: float | None) -> None:
    assert not any("cost" in line for line in level_lines(priced_events(cost=cost)))


def test_what_is_left_names_money_only_where_it_is_known() -> None:
    assert format_remaining(REMAINING.model_copy(update={"cost_usd": None})) == "120 calls, 81k tokens"
    assert format_remaining(None) == "-"


@pytest.mark.parametrize("width", [60, 120])
def test_the_panel_shows_cost_and_calls_left(width: int) -> None:
    view, events = RunView(), list(priced_events())
    for event in events[: len(events) // 2]:
        view.apply(event)
    page = page_of(render_panel(view, now=START + 60, width=width), width=width)
    assert view.cost_usd is not None
    assert f"cost        ${view.cost_usd:.2f}" in page
    assert "left        120 calls" in page


def test_a_call_without_a_price_makes_the_sum_unknown() -> None:
    view, events = RunView(), list(priced_events())
    unpriced = next(event for event in events if isinstance(event, CallFinished)).model_copy(update={"cost_usd": None})
    view.apply(unpriced)
    assert view.cost_usd is None


def test_the_summary_has_money_by_role_where_there_is_any() -> None:
    usage = {"base": Usage(calls=3), "critic": Usage(calls=5), "optimizer": Usage(calls=1)}
    partly = page_of(render_summary(sample_result(usage_by_role=usage, cost_by_role={"critic": 0.42}), elapsed_s=1))
    rows = {line.split()[0]: line.split()[-1] for line in partly.splitlines() if line.strip()}
    assert (rows["cost"], rows["critic"], rows["base"], rows["total"]) == ("money", "$0.42", "-", "-")
    costs = {"base": 0.0, "critic": 0.42, "optimizer": 1.1}
    whole = page_of(render_summary(sample_result(usage_by_role=usage, cost_by_role=costs), elapsed_s=1))
    rows = {line.split()[0]: line.split()[-1] for line in whole.splitlines() if line.strip()}
    assert (rows["base"], rows["total"]) == ("$0.00", "$1.52")
    assert "money" not in page_of(render_summary(sample_result(cost_by_role={"base": 0.0}), elapsed_s=1))


def test_a_stop_names_the_flags_that_resuming_needs() -> None:
    out = io.StringIO()
    stop = run_stopped().model_copy(update={"reason": "interrupted", "resume_flags": "--max-calls 200"})
    display = make_display("plain", stdout=out, stderr=io.StringIO(), commands=["drpo resume t --checkpoint c"])
    display.handle(stop)
    assert out.getvalue().splitlines()[-1] == "resume with: drpo resume t --checkpoint c --max-calls 200"
