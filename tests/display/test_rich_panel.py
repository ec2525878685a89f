import io
from pathlib import Path

import pytest
from rich.cells import cell_len

from drpo_graph.display import PlainDisplay, RichDisplay, make_display
from drpo_graph.display.base import NullDisplay
from drpo_graph.display.panel import render_panel
from drpo_graph.display.view import RunView
from drpo_graph.events.schema import BeamEntry, LevelFinished, RunStarted, Warned
from drpo_graph.records import Usage
from tests.display.sample_events import (
    COMMANDS,
    RUN_ID,
    START,
    SampleRun,
    page_of,
    rollout_scored,
    run_started,
    run_stopped,
    sample_events,
    view_of,
)
from tests.support.hostile import HOSTILE, is_inert

WIDTHS = (60, 80, 99, 100, 120, 200)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def draw(view: RunView, *, width: int, now: float = START + 60, height: int = 40, is_ascii: bool = False) -> list[str]:
    """Return the panel's lines on a console without colour."""
    panel = render_panel(view, now=now, width=width, height=height, is_ascii=is_ascii)
    return page_of(panel, width=width).splitlines()


def view_after(num_events: int) -> RunView:
    return view_of(*sample_events()[:num_events])


def hostile_view() -> RunView:
    view = view_after(300)
    view.apply(
        RunStarted(**run_started().model_dump() | {"run_id": HOSTILE, "models": {"base": HOSTILE, "critic": "m"}})
    )
    entry = BeamEntry(candidate_id=HOSTILE, reward=4.0, path_reward=4.0, origin="kept")
    finished = LevelFinished(
        run_id=HOSTILE,
        level=3,
        max_depth=4,
        beam=(entry,),
        num_children=1,
        num_unscored=0,
        is_easy=False,
        usage=Usage(),
    )
    view.apply(finished)
    view.apply(rollout_scored(HOSTILE, HOSTILE, level=4, reward=None).model_copy(update={"failure_kind": HOSTILE}))
    view.apply(Warned(run_id=HOSTILE, message=HOSTILE))
    return view


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_events", [0, 1, 2, 40, 300, 10_000])
def test_no_line_is_wider_than_the_console(width: int, num_events: int) -> None:
    lines = draw(view_after(num_events), width=width)
    assert max(map(cell_len, lines)) <= width
    assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_text_is_shown_inert(width: int) -> None:
    lines = draw(hostile_view(), width=width)
    assert is_inert("\n".join(lines))
    assert len({cell_len(line) for line in lines}) == 1
    if width >= 200:
        assert any("[bold]markup[/bold]" in line for line in lines)


def test_columns_stack_on_a_narrow_terminal() -> None:
    view = view_after(300)
    assert any("level" in line and "role" in line for line in draw(view, width=100))
    assert not any("level" in line and "role" in line for line in draw(view, width=99))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 24), (60, 24)])
def test_panel_of_the_default_search_fits_a_small_terminal(width: int, height: int) -> None:
    assert len(draw(view_after(300), width=width, height=height)) <= height


@pytest.mark.parametrize("width", [80, 120])
def test_panel_keeps_its_height_while_the_run_goes_on(width: int) -> None:
    assert len({len(draw(view_after(n), width=width)) for n in (1, 2, 60, 200, 400, 10_000)}) == 1


def test_panel_says_what_there_is_to_know() -> None:
    page = "\n".join(draw(view_after(420), width=120))
    for part in (RUN_ID, "gpt-4.1", "3.0.2", "4.23", "rewrite", "optimizer", "calls/s", "http_429 1", "unparsable 1"):
        assert part in page
    assert "█" in page


def test_panel_does_without_block_characters() -> None:
    assert not any(spark in "".join(draw(view_after(420), width=120, is_ascii=True)) for spark in "▁▂▃▄▅▆▇█")


def test_display_draws_on_stderr_and_leaves_the_summary_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    out, err = io.StringIO(), Terminal()
    display = make_display("rich", stdout=out, stderr=err, files=[Path("runs/result.json")], commands=COMMANDS)
    assert isinstance(display, RichDisplay)
    display.start()
    for event in SampleRun().events():
        display.handle(event)
    display.stop()
    assert "optimizer" in err.getvalue()
    assert "best prompt" in out.getvalue()
    assert "runs/result.json" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_stopped_run_prints_why_and_how_to_resume() -> None:
    out = io.StringIO()
    display = RichDisplay(stdout=out, stderr=io.StringIO(), commands=COMMANDS)
    display.start()
    display.handle(run_stopped())
    display.stop()
    why, how = out.getvalue().splitlines()
    assert "HTTP 401" in why
    assert how == f"resume with: {COMMANDS[0]}"


def test_panel_falls_back_to_lines_where_it_cannot_be_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_display("rich", stdout=io.StringIO(), stderr=io.StringIO()), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display("rich", stdout=io.StringIO(), stderr=Terminal()), PlainDisplay)


def test_no_display_shows_nothing() -> None:
    out, err = io.StringIO(), io.StringIO()
    display = make_display("none", stdout=out, stderr=err)
    assert isinstance(display, NullDisplay)
    display.start()
    for event in sample_events():
        display.handle(event)
    display.stop()
    assert out.getvalue() == err.getvalue() == ""
