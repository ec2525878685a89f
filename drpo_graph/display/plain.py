"""Lines for logs: one per level, one at the start and the end, one per warning. No colour, no control codes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from drpo_graph.display.base import Display
from drpo_graph.display.collection import CollectionView, describe_end, describe_start, format_outcome
from drpo_graph.display.formatting import (
    NONE,
    format_count,
    format_duration,
    format_estimate,
    format_gain,
    format_models,
    format_remaining,
    format_reward,
)
from drpo_graph.display.streams import quiet
from drpo_graph.display.summary import list_after_examples, print_end
from drpo_graph.display.view import RunView, describe_endpoint, describe_review
from drpo_graph.events import schema
from drpo_graph.records import ICLResult
from drpo_graph.safety.terminal import inert
from drpo_graph.settings.limits import tell_money

WIDTH = 100
"""Columns of the summary: a log has no width of its own."""

_MAX_LINE = 400
_MAX_BEAM = 8


class PlainDisplay(Display):
    """Writes a run as lines of text."""

    def __init__(self, stdout: TextIO, *, files: Sequence[Path] = (), commands: Sequence[str] = ()) -> None:
        self._stream = quiet(stdout)
        self._view = RunView()
        self._files, self._commands = tuple(files), tuple(commands)

    def handle(self, event: schema.Event) -> None:
        """Take the event in; write its line if it has one."""
        self._view.apply(event)
        match event:
            case schema.RunStarted():
                self._write(_start_line(event))
            case schema.LevelFinished():
                self._write(_level_line(self._view, event))
            case schema.ValidationFinished():
                self._write(_validation_line(event))
            case schema.Warned():
                self._write(f"warning: {inert(event.message, max_chars=_MAX_LINE)}")
            case schema.EndpointLost() | schema.EndpointBack():
                self._write(inert(describe_endpoint(event), max_chars=_MAX_LINE))
            case schema.ReviewDecided():
                self._write(f"review  {inert(describe_review(event), max_chars=_MAX_LINE)}")
            case schema.RunFinished():
                elapsed_s = self._view.elapsed_s(event.time)
                self._write(f"done  {inert(event.run_id, max_chars=80)}  {format_duration(elapsed_s)}")
                self._print_end(event, elapsed_s=elapsed_s)
            case schema.ICLStarted():
                verb = "resumed" if event.is_resumed else "started"
                rounds = f"{event.num_iters} iterations of {event.num_samples}"
                self._write(f"{verb}  {inert(event.run_id, max_chars=80)}  examples {event.num_examples}  {rounds}")
            case schema.ICLExampleFinished():
                self._write(_example_line(event))
            case schema.ICLFinished():
                self._write(_examples_line(event.result))
                for line in list_after_examples(self._files, self._commands, event.result):
                    self._write(inert(line, max_chars=_MAX_LINE))
            case schema.CollectionStarted():
                self._write(describe_start(event))
            case schema.TrialFinished():
                collection = self._view.collection
                if collection is not None and collection.has_line:
                    self._write(_trials_line(self._view, collection, event.time))
            case schema.CollectionFinished():
                elapsed_s = self._view.elapsed_s(event.time)
                run = inert(event.run_id, max_chars=80)
                self._write(f"done  {run}  {describe_end(event.result)}  {format_duration(elapsed_s)}")
                self._print_end(event, elapsed_s=elapsed_s)
            case schema.RunStopped():
                self._print_end(event, elapsed_s=self._view.elapsed_s(event.time))

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _print_end(
        self, event: schema.RunFinished | schema.CollectionFinished | schema.RunStopped, *, elapsed_s: float
    ) -> None:
        """Print without colour, and without the blanks that fill a console's lines."""
        page = io.StringIO()
        console = Console(file=page, width=WIDTH, color_system=None, legacy_windows=False, highlight=False)
        models = self._view.models.values()
        print_end(console, event, elapsed_s=elapsed_s, files=self._files, commands=self._commands, models=models)
        for line in page.getvalue().split("\n")[:-1]:
            self._write(line.rstrip())


def _start_line(event: schema.RunStarted) -> str:
    parts = (
        f"{'resumed' if event.is_resumed else 'started'}  {inert(event.run_id, max_chars=80)}",
        f"levels {event.num_levels}",
        f"beam {event.beam_size} x {event.n_actions}",
        f"queries {event.num_queries}, {event.queries_per_level} per level",
        f"models {format_models(event.models)}" if event.models else "",
    )
    return "  ".join(filter(None, parts))


def _level_line(view: RunView, event: schema.LevelFinished) -> str:
    best = NONE
    if view.best is not None:
        best = f"{format_reward(view.best.path_reward)} ({inert(view.best.candidate_id, max_chars=40)})"
    expected = "" if view.num_rollouts is None else f"/{view.num_rollouts}"
    usage, remaining_s = view.usage, view.remaining_s(event.time)
    parts = (
        f"level {event.level}/{event.max_depth}",
        f"best {best}",
        "beam " + (" ".join(format_reward(entry.path_reward) for entry in event.beam[:_MAX_BEAM]) or NONE),
        f"children {len(view.rollouts)}{expected}",
        f"unscored {view.num_unscored}",
        f"calls {usage.calls}",
        f"tokens {format_count(usage.prompt_tokens + usage.completion_tokens)}",
        f"cost {tell_money(view.cost_usd)}" if view.cost_usd else "",
        f"retries {view.num_retries}",
        format_duration(view.elapsed_s(event.time)),
        f"eta {format_estimate(remaining_s)}" if remaining_s else "",
        f"left {format_remaining(event.remaining)}" if event.remaining and event.remaining.calls else "",
        "easy" if event.is_easy else "",
    )
    return "  ".join(filter(None, parts))


def _trials_line(view: RunView, collection: CollectionView, now: float) -> str:
    usage, remaining_s = view.usage, view.remaining_s(now)
    parts = (
        f"trials {collection.num_done}/{collection.num_planned}",
        f"mean outcome {format_outcome(collection.mean_outcome)}",
        f"unlabelled {collection.num_unlabelled}",
        f"calls {usage.calls}",
        f"tokens {format_count(usage.prompt_tokens + usage.completion_tokens)}",
        f"cost {tell_money(view.cost_usd)}" if view.cost_usd else "",
        f"retries {view.num_retries}",
        format_duration(view.elapsed_s(now)),
        f"eta {format_estimate(remaining_s)}" if remaining_s else "",
    )
    return "  ".join(filter(None, parts))


def _validation_line(event: schema.ValidationFinished) -> str:
    verdict = "significant improvement" if event.is_significant else "no significant improvement"
    difference = "" if event.difference is None else f"{event.difference:+.2f}"
    interval = ""
    if event.interval_low is not None and event.interval_high is not None:
        interval = f"95% interval [{event.interval_low:+.2f}, {event.interval_high:+.2f}]"
    selected = f"selected {inert(event.selected_id, max_chars=40)}"
    return "  ".join(filter(None, ("validation", verdict, difference, interval, selected)))


def _example_line(event: schema.ICLExampleFinished) -> str:
    parts = (
        "example",
        inert(event.example_id, max_chars=40),
        "unscored" if event.reward is None else format_gain([event]),
        inert(event.detail, max_chars=_MAX_LINE),
        f"iterations {event.iterations}",
    )
    return "  ".join(filter(None, parts))


def _examples_line(result: ICLResult) -> str:
    calls = sum(usage.calls for usage in result.usage_by_role.values())
    counts = f"examples {len(result.examples)}  unscored {result.num_unscored}  calls {calls}"
    return f"done  {inert(result.thread_id, max_chars=80)}  {counts}  mean reward {format_gain(result.examples)}"
