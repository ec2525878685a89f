"""Which system prompt an aligned model is given, and where it comes from."""

from typing import NamedTuple, Protocol, runtime_checkable

from drpo_graph.errors import SettingsError
from drpo_graph.prompts.placeholders import FieldStyle
from drpo_graph.records import RunResult
from drpo_graph.registry import GENERAL_PROMPT, RegisteredPrompt


@runtime_checkable
class ModelPrompt(Protocol):
    """A prompt that was optimised for a model, such as a registered one."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def system_prompt(self) -> str:
        """The prompt."""
        ...


@runtime_checkable
class PromptSource(Protocol):
    """Knows prompts by the model that they were optimised for, such as a prompt registry."""

    def find(self, model: str) -> ModelPrompt | None:
        """Return a model's prompt, or ``None`` where there is none."""
        ...


GivenPrompt = str | RunResult | ModelPrompt
"""A prompt of the user's own, a run's, or a registered one."""


class ChosenPrompt(NamedTuple):
    """A system prompt and its source."""

    text: str
    source: str
    """``own``, ``run THREAD``, ``registry MODEL`` or ``general``."""
    placeholders: FieldStyle | None = None
    """How it marks what an app fills in, where that is known."""


def choose_prompt(given: GivenPrompt | None, *, model: str, registry: PromptSource | None = None) -> ChosenPrompt:
    """Return the prompt that was given, else the registry's for the model, else the general alignment prompt.

    Args:
        given: The prompt to use, whatever the registry holds.
        model: The model's name, as ``provider:model``; the registry is asked for it, and for it without the provider.
        registry: Prompts that were optimised for models.

    Raises:
        SettingsError: the given prompt is blank.
    """
    if isinstance(given, RunResult):
        return ChosenPrompt(given.system_prompt, f"run {given.thread_id}")
    if isinstance(given, str):
        if not given.strip():
            raise SettingsError("The system prompt is blank: give a text, or none for the model's own prompt.")
        return ChosenPrompt(given, "own")
    found = given
    if found is None and registry is not None:
        found = registry.find(model) or registry.find(model.partition(":")[2] or model)
    if found is None:
        return ChosenPrompt(GENERAL_PROMPT, "general")
    style = found.placeholders if isinstance(found, RegisteredPrompt) else None
    return ChosenPrompt(found.system_prompt, f"registry {found.model}", style)
