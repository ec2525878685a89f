"""Optimised prompts by model name, with where they come from."""

from drpo_graph.registry.forms import PromptForm, render_prompt
from drpo_graph.registry.prompt import GENERAL_PROMPT, RegisteredPrompt
from drpo_graph.registry.published import read_published_prompt
from drpo_graph.registry.store import PromptRegistry

__all__ = [
    "GENERAL_PROMPT",
    "PromptForm",
    "PromptRegistry",
    "RegisteredPrompt",
    "read_published_prompt",
    "render_prompt",
]
