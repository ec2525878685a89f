"""Optimised prompts by model name, with where they come from."""

from drpo_graph.prompt_registry.general import GENERAL_PROMPT
from drpo_graph.prompt_registry.published import is_model_mapping, read_model_mapping, read_published_prompt
from drpo_graph.prompt_registry.records import RegisteredPrompt
from drpo_graph.prompt_registry.store import PromptRegistry

__all__ = [
    "GENERAL_PROMPT",
    "PromptRegistry",
    "RegisteredPrompt",
    "is_model_mapping",
    "read_model_mapping",
    "read_published_prompt",
]
