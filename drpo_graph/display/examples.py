"""What a display shows of a run over ICL examples: how far it is, and what became of each example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from drpo_graph.display.formatting import NONE, format_reward
from drpo_graph.events.schema import ICLExampleFinished, ICLStarted
from drpo_graph.records import ICLResult, mean
from drpo_graph.safety.terminal import inert

RESULT_FILE = "result.json"
_MAX_ROWS = 6
_MAX_LINE = 400
_MAX_ID = 24


@dataclass(slots=True)
class ExamplesView:
    """Everything that a display shows of the examples."""

    num_examples: int
    num_iters: int
    num_samples: int
    finished: dict[str, ICLExampleFinished] = field(default_factory=dict)
    """By the example's id, in the order in which they were finished."""

    @classmethod
    def of(cls, event: ICLStarted) -> "ExamplesView":
        """Return the view of a run that begins or goes on."""
        return cls(event.num_examples, event.num_iters, event.num_samples)

    def finish(self, event: ICLExampleFinished) -> None:
        """Take an example in; one that repeats after a resume counts once."""
        self.finished[event.example_id] = event

    def remaining_s(self, elapsed_s: float) -> float | None:
        """Return about how long the rest takes, ``None`` before the first example is finished."""
        num_done = len(self.finished)
        return elapsed_s / num_done * (self.num_examples - num_done) if num_done else None

    def gain(self) -> str:
        """Return the mean rewards before and after, of the examples that are finished."""
        before = mean([one.initial_reward for one in self.finished.values()])
        after = mean([one.reward for one in self.finished.values()])
        return f"{format_reward(before)} -> {format_reward(after)}"


def render_progress(view: ExamplesView, *, label: Text, label_width: int) -> Table:
    """Return how many examples are finished, and what they gained."""
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    grid.add_column(width=label_width, no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    num_done = len(view.finished)
    bar = ProgressBar(
        total=max(view.num_examples, 1),
        completed=num_done,
        complete_style="cyan",
        finished_style="cyan",
        style="bright_black",
    )
    grid.add_row(label, bar, f"{num_done}/{view.num_examples} examples")
    rounds = f"{view.num_iters} iterations of {view.num_samples}"
    grid.add_row(Text("mean reward", style="dim"), Text(view.gain(), style="bold green"), Text(rounds, style="dim"))
    return grid


def render_latest(view: ExamplesView, *, label_width: int) -> Table:
    """Return the examples that were finished last."""
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("example", min_width=label_width, no_wrap=True, overflow="ellipsis")
    for heading in ("before", "after", "iterations"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    latest = list(view.finished.values())[-_MAX_ROWS:]
    for one in latest:
        gained = one.reward is not None and one.initial_reward is not None and one.reward > one.initial_reward
        table.add_row(
            Text(inert(one.example_id, max_chars=_MAX_ID)),
            Text(format_reward(one.initial_reward)),
            Text(format_reward(one.reward), style="bold green" if gained else "bold"),
            str(one.iterations),
            Text(inert(one.detail, max_chars=_MAX_LINE), style="dim"),
        )
    # The panel keeps its height from the first second on.
    for _ in range(min(view.num_examples, _MAX_ROWS) - len(latest)):
        table.add_row(Text(NONE, style="dim"), "", "", "", "")
    return table


def print_examples(console: Console, result: ICLResult) -> None:
    """Print what became of every example."""
    table = Table(
        title=Text("ICL examples", style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for heading in ("example", "reward before", "after", "iterations"):
        table.add_column(heading, no_wrap=True)
    # Rich narrows columns that may wrap first: the query alone gives way.
    table.add_column("query", ratio=1)
    for one in result.examples:
        cells = (one.id, _reward(one.initial_reward), _reward(one.reward), str(one.iterations))
        query = Text(inert(one.query, max_chars=_MAX_LINE), no_wrap=True, overflow="ellipsis")
        table.add_row(*(Text(inert(cell, max_chars=_MAX_ID)) for cell in cells), query)
    console.print(table)
    before = format_reward(mean([one.initial_reward for one in result.examples]))
    after = format_reward(mean([one.reward for one in result.examples]))
    calls = sum(usage.calls for usage in result.usage_by_role.values())
    console.print(Text(f"mean reward {before} -> {after}, unscored {result.num_unscored}, calls {calls}"))


def list_example_files(files: Sequence[Path], result: ICLResult) -> list[Path]:
    """Return where the examples and the result were written, given the files of a search in the same place."""
    folders = [one.parent for one in files if one.name == RESULT_FILE]
    return [folder / name for folder in folders for name in (result.published_name, RESULT_FILE)]


def _reward(reward: float | None) -> str:
    return "unscored" if reward is None else format_reward(reward)
