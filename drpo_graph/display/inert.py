"""Texts made harmless for a terminal, under the name that displays know."""

from drpo_graph.safety.terminal import inert as inert
from drpo_graph.safety.terminal import inert_block as inert_block
