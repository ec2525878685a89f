"""A run over ICL examples on the panel, and what is left on the screen after it."""

import io

import pytest

from drpo_graph.display import RichDisplay
from drpo_graph.display.panel import render_panel
from drpo_graph.display.view import RunView
from drpo_graph.events.schema import Event, ICLExampleFinished, ICLFinished, ICLStarted, RolloutScored
from drpo_graph.records import ICLOutcome, ICLResult, Usage
from tests.display.sample_events import page_of, view_of
from tests.support.hostile import HOSTILE, is_inert

START = 1_760_000_000.0
MODELS = {"metrics": "openai:m", "critic": "openai:c", "optimizer": "openai:o"}


def started(**values: object) -> ICLStarted:
    fields = {"run_id": "t", "time": START, "is_resumed": False, "num_examples": 4, "num_iters": 3, "num_samples": 2}
    return ICLStarted.model_validate({**fields, "models": MODELS, **values})


def finished(example_id: str, before: float | None, after: float | None, *, at: float, detail: str = "") -> Event:
    return ICLExampleFinished(
        run_id="t",
        time=START + at,
        example_id=example_id,
        initial_reward=before,
        reward=after,
        iterations=2,
        detail=detail,
    )


def draw(view: RunView, *, width: int, at: float = 30) -> list[str]:
    return page_of(render_panel(view, now=START + at, width=width), width=width).splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_panel_shows_how_far_the_examples_are_and_what_they_gained(width: int) -> None:
    scored = RolloutScored(
        run_id="t", candidate_id="1.0", query_id="icl-001", level=1, reward=None, failure_kind="empty"
    )
    view = view_of(
        started(),
        scored,
        finished("icl-001", 2.0, 4.0, at=10),
        finished("icl-002", 3.0, 3.0, at=20),
        finished("icl-002", 3.0, 3.0, at=20),
    )
    lines = draw(view, width=width)
    text = "\n".join(lines)
    assert {len(line) for line in lines} == {width}
    assert "2/4 examples" in text
    assert "2.50 -> 3.50" in text
    assert "icl-001" in text
    assert "examples" in text
    assert "empty" in text
    assert "beam" not in text


def test_panel_keeps_its_height_and_shows_no_code_of_a_text() -> None:
    empty = draw(view_of(started()), width=120)
    full = draw(
        view_of(started(), *(finished(f"{n}{HOSTILE}", 1, 2, at=n, detail=HOSTILE) for n in range(4))), width=120
    )
    assert len(empty) == len(full)
    assert all(is_inert(line) for line in full)


def test_resumed_run_keeps_what_was_finished_before() -> None:
    view = view_of(started(), finished("icl-001", 2.0, 4.0, at=10), started(is_resumed=True, time=START + 50))
    assert view.examples is not None
    assert list(view.examples.finished) == ["icl-001"]
    assert view.phase == "examples"


def test_summary_lists_every_example_and_the_mean_before_and_after() -> None:
    outcomes = tuple(
        ICLOutcome(
            id=f"icl-00{n}", query=f"Query {n}?", response="r", initial_reward=before, reward=after, iterations=1
        )
        for n, (before, after) in enumerate([(2.0, 4.0), (None, None)], 1)
    )
    result = ICLResult(
        thread_id="t",
        status="done",
        num_iters=1,
        num_samples=1,
        examples=outcomes,
        num_unscored=1,
        usage_by_role={"critic": Usage(calls=3)},
        failures_by_kind={},
        fingerprints={},
    )
    out = io.StringIO()
    display = RichDisplay(stdout=out, stderr=io.StringIO())
    display.start()
    display.handle(started())
    display.handle(ICLFinished(run_id="t", time=START + 60, result=result))
    display.stop()
    said = out.getvalue()
    assert "icl-001" in said
    assert "unscored 1, calls 3" in said
    assert "mean reward 2.00 -> 4.00" in said
