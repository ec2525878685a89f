"""The live panel as a pure function of the view: two columns from 100 characters on, one below."""

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from drpo_graph.display.collection import CollectionView, format_outcome
from drpo_graph.display.formatting import (
    NONE,
    format_count,
    format_duration,
    format_estimate,
    format_gain,
    format_kinds,
    format_models,
    format_reward,
    format_usage,
)
from drpo_graph.display.view import ExamplesView, Message, Phase, RunView
from drpo_graph.events.schema import BeamEntry
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Usage
from drpo_graph.safety.terminal import inert
from drpo_graph.settings.limits import tell_money

MIN_TWO_COLUMNS = 100
MAX_WIDTH = 150
"""Beyond this a panel is harder to read, not fuller."""

_RIGHT_WIDTH = 50
_MAX_ROWS, _MAX_MESSAGES = 6, 3
_FIXED_LINES_WIDE, _FIXED_LINES_NARROW = 12, 21
"""Lines of the panel beside the beam and the messages."""

_LABEL_WIDTH, _MAX_ID, _MAX_LINE = 11, 24, 400
_SPARKS = "▁▂▃▄▅▆▇█"
_STYLE_BY_PHASE: dict[Phase, str] = {"done": "green", "interrupted": "yellow", "waiting": "yellow", "failed": "red"}
_STYLE_BY_MESSAGE = {"warning": "yellow", "unscored": "red", "note": "dim"}


def render_panel(view: RunView, *, now: float, width: int, height: int = 40, is_ascii: bool = False) -> RenderableType:
    """Return the panel; what it holds no longer depends on the view, which may change while it is drawn.

    Args:
        width: Columns to fill, up to :data:`MAX_WIDTH`.
        height: Lines of the terminal: on a low one fewer messages are shown.
        is_ascii: Whether the terminal lacks block characters.
    """
    width = min(width, MAX_WIDTH)
    is_wide = width >= MIN_TWO_COLUMNS
    rows = _two_columns(view, now=now) if is_wide else _one_column(view, now=now)
    num_rows = view.examples.num_examples if view.examples else max(view.beam_size, len(view.beam))
    if view.collection is not None:
        num_rows = len(view.collection.prompts)
    room = height - min(num_rows, _MAX_ROWS) - (_FIXED_LINES_WIDE if is_wide else _FIXED_LINES_NARROW)
    rows.append(_rule())
    if view.examples is None and view.collection is None:
        rows.append(_sparkline(view, width=width - 4, is_ascii=is_ascii))
    rows += _message_lines(view.messages, max_messages=min(max(room, 1), _MAX_MESSAGES))
    title = Text.assemble(" ", ("drpo", "bold cyan"), "  ", (inert(view.run_id, max_chars=60), "bold"), " ")
    models = _models_text(view, width=width - 4)
    if title.cell_len + models.cell_len + 8 <= width:
        title.append(" ").append_text(models).append(" ")
    else:
        rows.insert(0, models)
    style = _STYLE_BY_PHASE.get(view.phase, "cyan")
    return Panel(Group(*rows), title=title, title_align="left", border_style=style, width=width, padding=(0, 1))


def _two_columns(view: RunView, *, now: float) -> list[RenderableType]:
    left = Group(_progress(view), Text(), _main_table(view), Text(), _troubles(view))
    right = Group(_roles_table(view), Text(), _speed(view, now=now))
    table = Table(box=box.MINIMAL, show_header=False, show_edge=False, expand=True, border_style="dim", pad_edge=False)
    table.add_column(ratio=1)
    table.add_column(width=_RIGHT_WIDTH)
    table.add_row(left, right)
    return [table]


def _one_column(view: RunView, *, now: float) -> list[RenderableType]:
    upper: list[RenderableType] = [_progress(view), _rule(), _main_table(view), _rule(), _roles_table(view)]
    return [*upper, _speed(view, now=now), _troubles(view)]


def _models_text(view: RunView, *, width: int) -> Text:
    line = format_models(view.models)
    if cell_len(line) > width:
        # The last part of a model's path says most about it.
        line = format_models({role: re.split("[:/]", model)[-1] for role, model in view.models.items()})
    return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def _rule() -> Rule:
    return Rule(style="dim")


def _main_table(view: RunView) -> Table:
    if view.collection is not None:
        return _prompts_table(view.collection)
    return _beam_table(view) if view.examples is None else _examples_table(view.examples)


def _progress(view: RunView) -> Table:
    label = Text(view.phase, style=_STYLE_BY_PHASE.get(view.phase, "bold"))
    if view.lost_endpoints and view.stopped is None:
        label = Text("server lost", style="bold red")
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    grid.add_column(width=_LABEL_WIDTH, no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    if view.collection is not None:
        _add_trials(grid, view.collection, label=label)
    elif view.examples is None:
        _add_levels(grid, view, label=label)
    else:
        _add_examples(grid, view.examples, label=label)
    return grid


def _add_levels(grid: Table, view: RunView, *, label: Text) -> None:
    num_done, num_rollouts = len(view.rollouts), view.num_rollouts
    share = min(num_done / num_rollouts, 1.0) if num_rollouts else 0.0
    is_searching = bool(view.level) and not view.is_level_finished
    levels_done = view.levels_done + (share if is_searching else 0.0)
    grid.add_row(label, _bar(levels_done, view.max_depth), f"{view.level or 0}/{view.max_depth}")
    expected = "" if num_rollouts is None else f"/{num_rollouts}"
    if view.phase == "choosing" and view.num_late_rollouts:
        grid.add_row(Text("validation", style="dim"), Text(), f"{view.num_late_rollouts} rollouts")
    else:
        grid.add_row(Text("rollouts", style="dim"), _bar(num_done, num_rollouts or 0), f"{num_done}{expected}")


def _add_examples(grid: Table, examples: ExamplesView, *, label: Text) -> None:
    num_done = len(examples.finished)
    grid.add_row(label, _bar(num_done, examples.num_examples), f"{num_done}/{examples.num_examples} examples")
    gain = Text(format_gain(examples.finished.values()), style="bold green")
    rounds = f"{examples.num_iters} iterations of {examples.num_samples}"
    grid.add_row(Text("mean reward", style="dim"), gain, Text(rounds, style="dim"))


def _add_trials(grid: Table, collection: CollectionView, *, label: Text) -> None:
    num_done, num_planned = collection.num_done, collection.num_planned
    grid.add_row(label, _bar(num_done, num_planned), f"{num_done}/{num_planned} trials")
    outcome = Text(format_outcome(collection.mean_outcome), style="bold green")
    grid.add_row(Text("mean outcome", style="dim"), outcome, Text(f"{len(collection.prompts)} prompts", style="dim"))


def _bar(completed: float, total: float, *, style: str = "cyan") -> ProgressBar:
    return ProgressBar(
        total=max(total, 1e-9),
        completed=max(completed, 0.0),
        complete_style=style,
        finished_style=style,
        style="bright_black",
    )


def _beam_table(view: RunView) -> Table:
    table = _table(expand=True)
    table.add_column("beam", width=_LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column("path", justify="right", no_wrap=True, min_width=4)
    table.add_column("reward", justify="right", no_wrap=True, min_width=7)
    table.add_column("", ratio=1)
    table.add_column("from", no_wrap=True, min_width=7)
    best_id = view.best.candidate_id if view.best else None
    for entry in view.beam[:_MAX_ROWS]:
        table.add_row(*_beam_cells(entry, is_best=entry.candidate_id == best_id))
    _fill(table, view.beam_size)
    if len(view.beam) > _MAX_ROWS:
        table.add_row(Text(f"{len(view.beam) - _MAX_ROWS} more", style="dim"))
    return table


def _examples_table(examples: ExamplesView) -> Table:
    """Return those that were finished last."""
    table = _table(expand=True)
    table.add_column("example", min_width=_LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    for heading in ("before", "after", "iterations"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for one in list(examples.finished.values())[-_MAX_ROWS:]:
        gained = one.reward is not None and one.initial_reward is not None and one.reward > one.initial_reward
        table.add_row(
            Text(inert(one.example_id, max_chars=_MAX_ID)),
            Text(format_reward(one.initial_reward)),
            Text(format_reward(one.reward), style="bold green" if gained else "bold"),
            str(one.iterations),
            Text(inert(one.detail, max_chars=_MAX_LINE), style="dim"),
        )
    _fill(table, examples.num_examples)
    return table


def _prompts_table(collection: CollectionView) -> Table:
    """Return all prompts, or where they are too many, those that were tried last."""
    names = list(collection.prompts if len(collection.prompts) <= _MAX_ROWS else collection.last)[-_MAX_ROWS:]
    table = _table(expand=True)
    table.add_column("prompt", min_width=_LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    for heading in ("outcome", "trials", "unlabelled"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    for name in names:
        one = collection.prompts[name]
        table.add_row(
            Text(inert(name, max_chars=_MAX_ID)),
            Text(format_outcome(one.mean), style="bold"),
            _number(one.num_labelled),
            _number(one.num_unlabelled, style="red"),
            _bar(one.mean or 0.0, 1.0, style="blue"),
        )
    _fill(table, len(collection.prompts))
    return table


def _table(*, expand: bool = False) -> Table:
    return Table(box=None, expand=expand, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _fill(table: Table, num_rows: int) -> None:
    """Add empty rows: the panel keeps its height from the first second on."""
    for _ in range(min(num_rows, _MAX_ROWS) - table.row_count):
        table.add_row(Text(NONE, style="dim"))


def _beam_cells(entry: BeamEntry, *, is_best: bool) -> Sequence[RenderableType]:
    shown = MIN_SCORE if entry.reward is None else entry.reward
    style = "green" if is_best else "default"
    return (
        Text(inert(entry.candidate_id, max_chars=_MAX_ID), style=style),
        Text(format_reward(entry.path_reward), style=f"bold {style}"),
        Text(format_reward(entry.reward)),
        _bar(shown - MIN_SCORE, MAX_SCORE - MIN_SCORE, style=style if is_best else "blue"),
        Text(entry.origin, style="dim"),
    )


def _troubles(view: RunView) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    grid.add_column(width=_LABEL_WIDTH, no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_row(Text("unscored", style="dim"), _kinds(view.failures_by_kind, style="red"))
    grid.add_row(Text("retries", style="dim"), _kinds(view.retries_by_kind, style="yellow"))
    return grid


def _kinds(count_by_kind: Mapping[str, int], *, style: str) -> Text:
    total = sum(count_by_kind.values())
    if not total:
        return Text("0", style="dim")
    return Text.assemble((str(total), style), (f"  {format_kinds(count_by_kind)}", "dim"))


def _roles_table(view: RunView) -> Table:
    table = _table()
    table.add_column("role", width=_LABEL_WIDTH, no_wrap=True)
    for name, width in (("calls", 7), ("in", 6), ("out", 6), ("cached", 7), ("retries", 7)):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    for role, calls in view.calls.items():
        table.add_row(role, *_usage_cells(calls.usage, calls.retries))
    table.add_row("total", *_usage_cells(view.process_usage, view.num_retries), style="bold")
    return table


def _usage_cells(usage: Usage, retries: int) -> tuple[RenderableType, ...]:
    _, *tokens = format_usage(usage)
    return _number(usage.calls), *tokens, _number(retries, style="yellow")


def _number(count: int, *, style: str = "default") -> Text:
    return Text(str(count), style=style if count else "dim")


def _speed(view: RunView, *, now: float) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for width, style in ((_LABEL_WIDTH, "dim"), (14, ""), (_LABEL_WIDTH, "dim"), (10, "")):
        grid.add_column(width=width, style=style, no_wrap=True)
    remaining_s = view.remaining_s(now)
    elapsed = format_duration(view.elapsed_s(now))
    grid.add_row("elapsed", Text(elapsed, style="bold"), "remaining", Text(format_estimate(remaining_s), style="bold"))
    rate = f"{view.calls_per_s(now):.1f}"
    grid.add_row("calls/s", Text(rate, style="bold"), "from ledger", _number(view.num_from_ledger))
    remaining = view.remaining if view.phase in ("root", "level") else None
    left = NONE if remaining is None else f"{format_count(remaining.calls)} calls"
    cost = tell_money(view.cost_usd) if view.cost_usd else NONE
    grid.add_row("left", Text(left, style="bold"), "cost", Text(cost, style="bold"))
    return grid


def _sparkline(view: RunView, *, width: int, is_ascii: bool) -> Text:
    label = f"{'best':{_LABEL_WIDTH}} "
    known = [(level, reward) for level, reward in sorted(view.history.items()) if reward is not None]
    if not known or view.best is None:
        return Text.assemble((label, "dim"), (NONE, "dim"))
    start_level, start = known[0]
    head = f"{'initial' if start_level == 0 else f'level {start_level}'} {format_reward(start)} "
    tail = f" {format_reward(view.best.path_reward)}"
    where = f"  {inert(view.best.candidate_id, max_chars=_MAX_ID)}"
    room = max(width - cell_len(label + head + tail + where), 4)
    spark = "->" if is_ascii else _sparks([reward for _, reward in known][-room:])
    parts = ((label, "dim"), (head, "dim"), (spark, "green"), (tail, "bold green"), (where, "dim"))
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _sparks(rewards: Sequence[float]) -> str:
    low, high = min(rewards), max(rewards)
    top = len(_SPARKS) - 1
    return "".join(
        _SPARKS[round((reward - low) / (high - low) * top) if high > low else top // 2] for reward in rewards
    )


def _message_lines(messages: Sequence[Message], *, max_messages: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for message in list(messages)[-max_messages:]:
        time = f"{format_duration(message.elapsed_s):{_LABEL_WIDTH}} "
        text = inert(message.text, max_chars=_MAX_LINE)
        word = "" if message.kind == "note" else f"{message.kind} "
        parts = ((time, "dim"), (word, _STYLE_BY_MESSAGE[message.kind]), text)
        lines.append(Text.assemble(*parts, no_wrap=True, overflow="ellipsis"))
    return lines + [Text() for _ in range(max_messages - len(lines))]
