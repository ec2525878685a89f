"""Texts made harmless for a terminal, under the name that displays know."""

from drpo_graph.inert import inert as inert
from drpo_graph.inert import inert_block as inert_block
