"""What people and programs see of a run while it runs, and when it has ended."""

from drpo_graph.display.base import Display, NullDisplay
from drpo_graph.display.factory import DisplayKind, make_display
from drpo_graph.display.jsonl import JsonlDisplay
from drpo_graph.display.plain import PlainDisplay
from drpo_graph.display.rich_panel import RichDisplay
from drpo_graph.display.summary import RESUME_COMMAND, render_summary
from drpo_graph.display.view import RunView

__all__ = [
    "RESUME_COMMAND",
    "Display",
    "DisplayKind",
    "JsonlDisplay",
    "NullDisplay",
    "PlainDisplay",
    "RichDisplay",
    "RunView",
    "make_display",
    "render_summary",
]
