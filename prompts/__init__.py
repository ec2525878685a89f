"""Prompt templates, the metrics, and the typed renderers that fill them."""

from drpo_graph.prompts.library import load_prompts

__all__ = ["load_prompts"]
