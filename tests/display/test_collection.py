"""A collection of demonstrations on the panel, in a log, and what is left on the screen after it."""

import io

import pytest

from drpo_graph.display import PlainDisplay, RichDisplay
from drpo_graph.display.panel import render_panel
from drpo_graph.display.view import RunView
from drpo_graph.events.progress import Progress
from drpo_graph.events.schema import CollectionFinished, CollectionStarted, Event, TrialFinished
from drpo_graph.records import CollectionResult, PromptOutcome, Usage
from tests.display.sample_events import estimated, page_of, view_of
from tests.support.hostile import HOSTILE, is_inert

START = 1_760_000_000.0


def prompts(count: int = 3, **values: object) -> tuple[PromptOutcome, ...]:
    return tuple(
        PromptOutcome.model_validate({"name": f"p{n}", "prompt": f"Prompt {n}.", **values}) for n in range(count)
    )


def started(*, given: tuple[PromptOutcome, ...] = prompts(), planned: int = 40, at: float = 0) -> CollectionStarted:
    return CollectionStarted(
        run_id="t",
        time=START + at,
        is_resumed=at > 0,
        num_queries=10,
        num_trials=1,
        num_planned=planned,
        checker="numeric",
        prompts=given,
        models={"base": "openai:m"},
    )


def tried(prompt: str, outcome: float | None, *, at: float = 1, was_unlabelled: bool = False) -> Event:
    return TrialFinished(
        run_id="t",
        time=START + at,
        query_id="q",
        prompt_name=prompt,
        trial=0,
        outcome=outcome,
        failure_kind=None if outcome is not None else "refused",
        detail="" if outcome is not None else HOSTILE,
        was_unlabelled=was_unlabelled,
    )


def draw(view: RunView, *, width: int, at: float = 30) -> list[str]:
    return page_of(render_panel(view, now=START + at, width=width), width=width).splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_panel_shows_how_far_the_trials_are_and_what_each_prompt_came_to(width: int) -> None:
    view = view_of(started(), tried("p0", 1.0), tried("p0", 0.5), tried("p1", None), tried("p2", 0.0))
    lines = draw(view, width=width)
    text = "\n".join(lines)
    assert {len(line) for line in lines} == {width}
    assert "4/40 trials" in text
    assert "0.750" in text
    assert "0.500" in text
    assert "refused" in text
    assert "beam" not in text
    assert all(map(is_inert, lines))


def test_panel_keeps_its_height_and_shows_the_prompts_tried_last_where_there_are_many() -> None:
    empty = draw(view_of(started(given=prompts(30))), width=120)
    full = draw(view_of(started(given=prompts(30)), *(tried(f"p{n}", 1.0) for n in (29, 3))), width=120)
    assert len(empty) == len(full)
    assert "p29" in "\n".join(full)


def test_resumed_collection_goes_on_from_its_tallies_and_counts_a_repeated_trial_once() -> None:
    before = prompts(1, num_labelled=4, num_unlabelled=1, mean_outcome=0.5)
    view = view_of(tried("p0", 1.0), started(given=before, at=50), tried("p0", 1.0, at=60, was_unlabelled=True))
    assert view.collection is not None
    assert (view.collection.num_done, view.collection.num_unlabelled) == (5, 0)
    assert view.collection.mean_outcome == 0.6


def make_result(count: int, *, num_labelled: int = 10) -> CollectionResult:
    return CollectionResult(
        thread_id="t",
        status="done",
        model="openai:m",
        checker="numeric",
        num_queries=10,
        num_trials=1,
        prompts=prompts(count, num_labelled=num_labelled, num_unlabelled=2, mean_outcome=0.25, mean_tokens=123.4),
        usage_by_role={"base": Usage(calls=36)},
        failures_by_kind={"truncated": 2 * count},
        fingerprints={},
    )


def finish(result: CollectionResult) -> str:
    out = io.StringIO()
    display = RichDisplay(stdout=out, stderr=io.StringIO())
    display.start()
    display.handle(started())
    display.handle(CollectionFinished(run_id="t", time=START + 60, result=result, output="/data/my rows.jsonl"))
    display.stop()
    return out.getvalue()


def test_nothing_is_learned_from_no_demonstration() -> None:
    said = finish(make_result(3, num_labelled=0))
    assert "nothing to learn from: no response could be labelled (truncated 6)" in said
    assert "next:" not in said


def test_end_lists_every_prompt_and_the_next_commands() -> None:
    said = finish(make_result(3))
    assert all(f"p{n}" in said for n in range(3))
    assert "demonstrations 30, unlabelled 6, calls 36" in said
    assert "next: drpo oirl train '/data/my rows.jsonl' --output /data/router.npz" in said


def test_log_of_a_long_collection_has_some_twenty_lines() -> None:
    out = io.StringIO()
    display = PlainDisplay(out)
    progress = Progress()
    for event in (started(planned=4000), *(tried(f"p{number % 3}", 1.0, at=number / 10) for number in range(4000))):
        display.handle(estimated(progress, event))
    display.handle(CollectionFinished(run_id="t", time=START + 400, result=make_result(3)))
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("trials ") for line in lines) == 20
    assert lines[0] == "started  t  queries 10  prompts 3  trials 4000  checker numeric  models openai:m"
    assert "eta" in lines[1]
