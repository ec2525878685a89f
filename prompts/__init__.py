"""Prompt templates, the metrics, and the typed renderers that fill them."""

from drpo_graph.prompts.library import Message, PromptLibrary, load_prompts

__all__ = ["Message", "PromptLibrary", "load_prompts"]
