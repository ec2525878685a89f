"""Which system prompt an aligned model is given, and where it comes from."""

from typing import NamedTuple

from drpo_graph.errors import SettingsError
from drpo_graph.prompt_registry import GENERAL_PROMPT, PromptRegistry, RegisteredPrompt
from drpo_graph.records import RunResult

GivenPrompt = str | RunResult | RegisteredPrompt
"""A prompt of the user's own, a run's, or a registered one."""


class ChosenPrompt(NamedTuple):
    """A system prompt and its source."""

    text: str
    source: str
    """``own``, ``run THREAD``, ``registry MODEL`` or ``general``."""


def choose_prompt(given: GivenPrompt | None, *, model: str, registry: PromptRegistry | None = None) -> ChosenPrompt:
    """Return the prompt that was given, else the registry's for the model, else the general alignment prompt.

    Args:
        given: The prompt to use, whatever the registry holds.
        model: The model's name, as the registry lists it or as ``provider:model``.
        registry: Prompts that were optimised for models.

    Raises:
        SettingsError: the given prompt is blank.
    """
    if isinstance(given, RunResult):
        return ChosenPrompt(given.system_prompt, f"run {given.thread_id}")
    if isinstance(given, RegisteredPrompt):
        return ChosenPrompt(given.system_prompt, f"registry {given.model}")
    if given is not None:
        if not given.strip():
            raise SettingsError("The system prompt is blank: give a text, or none for the model's own prompt.")
        return ChosenPrompt(given, "own")
    found = registry.find(model) if registry is not None else None
    if found is None:
        return ChosenPrompt(GENERAL_PROMPT, "general")
    return ChosenPrompt(found.system_prompt, f"registry {found.model}")
