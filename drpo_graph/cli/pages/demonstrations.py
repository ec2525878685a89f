"""What ``drpo oirl inspect`` prints: a table of demonstrations in numbers, and what is odd about it."""

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_graph.display.formatting import NONE
from drpo_graph.display.tables import make_table
from drpo_graph.oirl.demonstrations import Split
from drpo_graph.oirl.summary import SIDES, PromptSummary, SideSummary, TableSummary
from drpo_graph.safety.terminal import inert

_MAX_NAME, _MAX_PROMPT, _MAX_LINE = 24, 200, 1000
_NAME_BY_SIDE: dict[Split, str] = {"train": "train", "test": "test", "": "no side"}


def print_demonstrations(summary: TableSummary, stdout: TextIO) -> None:
    """Print the page."""
    console = Console(file=stdout, highlight=False, markup=False, emoji=False)
    for line in _tell_table(summary):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(), _prompt_table(summary))
    for check in summary.checks:
        console.print(Text(f"note: {inert(check, max_chars=_MAX_LINE)}"), soft_wrap=True)
    stdout.flush()


def _tell_table(summary: TableSummary) -> list[str]:
    sides = "; ".join(
        f"{_NAME_BY_SIDE[side]} {one.num_rows} rows, {one.num_queries} queries, mean {one.mean_outcome:.1%}"
        for side, one in summary.by_side.items()
    )
    models = ", ".join(
        f"{inert(name, max_chars=_MAX_NAME) or 'not named'} {num_rows}"
        for name, num_rows in summary.num_rows_by_model.items()
    )
    known = [
        f"{what} in {count} rows"
        for what, count in (("tokens", summary.num_tokens_known), ("self-critic", summary.num_confidences))
        if count
    ]
    return [
        f"{summary.num_rows} rows: {summary.num_queries} queries, {len(summary.prompts)} prompts",
        sides,
        f"rows by model: {models}",
        *([f"known besides: {', '.join(known)}"] if known else []),
    ]


def _prompt_table(summary: TableSummary) -> Table:
    sides = [side for side in SIDES if side in summary.by_side]
    table = make_table()
    table.add_column("prompt", no_wrap=True)
    for side in sides:
        table.add_column(_NAME_BY_SIDE[side], justify="right", no_wrap=True)
        table.add_column("mean", justify="right", no_wrap=True)
    if summary.num_tokens_known:
        table.add_column("tokens", justify="right", no_wrap=True)
    # Not the column but its texts keep to one line: so it is the one that is cut where the terminal is narrow.
    table.add_column("text", overflow="ellipsis")
    for one in summary.prompts:
        cells = _tell_prompt(one, sides, has_tokens=bool(summary.num_tokens_known))
        table.add_row(
            *map(Text, cells), Text(inert(one.text, max_chars=_MAX_PROMPT), no_wrap=True, overflow="ellipsis")
        )
    return table


def _tell_prompt(prompt: PromptSummary, sides: list[Split], *, has_tokens: bool) -> list[str]:
    cells = [inert(prompt.name, max_chars=_MAX_NAME)]
    for side in sides:
        cells += _tell_side(prompt.by_side.get(side))
    if has_tokens:
        cells.append(NONE if prompt.mean_tokens is None else f"{prompt.mean_tokens:.0f}")
    return cells


def _tell_side(side: SideSummary | None) -> list[str]:
    return [NONE, NONE] if side is None else [str(side.num_rows), f"{side.mean_outcome:.1%}"]
