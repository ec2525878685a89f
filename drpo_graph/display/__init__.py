"""What people and programs see of a run while it runs, and when it has ended."""

from drpo_graph.display.base import Display
from drpo_graph.display.factory import DisplayKind, make_display
from drpo_graph.display.jsonl import JsonlDisplay
from drpo_graph.display.plain import PlainDisplay
from drpo_graph.display.rich_panel import RichDisplay

__all__ = ["Display", "DisplayKind", "JsonlDisplay", "PlainDisplay", "RichDisplay", "make_display"]
