"""Optimised prompts by model name, with where they come from."""

from drpo_graph.prompt_registry.general import GENERAL_PROMPT

__all__ = ["GENERAL_PROMPT"]
