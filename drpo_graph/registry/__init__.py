"""Optimised prompts by model name, with where they come from."""

from drpo_graph.registry.forms import PromptForm, describe_provenance, render_prompt
from drpo_graph.registry.prompt import GENERAL_PROMPT, RegisteredPrompt
from drpo_graph.registry.published import is_model_mapping, read_model_mapping, read_published_prompt
from drpo_graph.registry.store import PromptRegistry

__all__ = [
    "GENERAL_PROMPT",
    "PromptForm",
    "PromptRegistry",
    "RegisteredPrompt",
    "describe_provenance",
    "is_model_mapping",
    "read_model_mapping",
    "read_published_prompt",
    "render_prompt",
]
