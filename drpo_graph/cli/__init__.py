"""The ``drpo`` command."""

from drpo_graph.cli.app import main

__all__ = ["main"]
