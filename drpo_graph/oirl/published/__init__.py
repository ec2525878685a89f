"""The published logs of Prompt-OIRL, read as demonstrations."""

from drpo_graph.oirl.published.logs import PublishedLogs, PublishedPrompt
from drpo_graph.oirl.published.reading import holds_published, read_published

__all__ = ["PublishedLogs", "PublishedPrompt", "holds_published", "read_published"]
