"""The display that a name stands for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO, assert_never

from drpo_graph.display.base import Display, NullDisplay
from drpo_graph.display.jsonl import JsonlDisplay
from drpo_graph.display.plain import PlainDisplay
from drpo_graph.display.rich_panel import RichDisplay, can_show_live

DisplayKind = Literal["rich", "plain", "jsonl", "none"]


def make_display(
    kind: DisplayKind,
    *,
    stdout: TextIO,
    stderr: TextIO,
    files: Sequence[Path] = (),
    commands: Sequence[str] = (),
) -> Display:
    """Return the display of this kind.

    The live panel of ``rich`` goes to stderr, all else to stdout; where stderr is no terminal that can redraw (a pipe,
    a file, ``TERM=dumb``), ``rich`` falls back to ``plain``.

    Args:
        stdout: Takes results: lines, events, the summary.
        stderr: Takes the live panel.
        files: What the summary names as the run's files.
        commands: What the summary offers as next steps; one that begins with ``drpo resume`` is shown when the run
            stops before its result.
    """
    match kind:
        case "rich" if can_show_live(stderr):
            return RichDisplay(stdout=stdout, stderr=stderr, files=files, commands=commands)
        case "rich" | "plain":
            return PlainDisplay(stdout, files=files, commands=commands)
        case "jsonl":
            return JsonlDisplay(stdout)
        case "none":
            return NullDisplay()
        case _:
            assert_never(kind)
