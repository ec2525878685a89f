"""Which system prompt an aligned model is given, and where it comes from."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from drpo_graph.errors import RewardModelError, SettingsError
from drpo_graph.inference.routers import HasBestPrompt, Routers
from drpo_graph.parts.choosers import PromptChoice, PromptChooser
from drpo_graph.parts.own_code import call_own
from drpo_graph.prompts.placeholders import FieldStyle
from drpo_graph.records import RunResult
from drpo_graph.registry import GENERAL_PROMPT, RegisteredPrompt
from drpo_graph.safety.texts import clean_surrogates


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


@runtime_checkable
class RouterSource(Protocol):
    """Knows the files of its prompts' routers, as a prompt registry does."""

    def find_router(self, prompt: RegisteredPrompt) -> Path | None:
        """Return the file of a prompt's router, or ``None`` where it has none."""
        ...


GivenPrompt = str | Path | RunResult | ModelPrompt | PromptChooser
"""A prompt of the user's own, a run's, a registered one, or what chooses one for each query: a router, or the path of
its file."""


class ChosenPrompt(NamedTuple):
    """A system prompt and its source."""

    text: str
    source: str
    """``own``, ``run THREAD``, ``registry MODEL``, ``router NAME`` or ``general``."""
    placeholders: FieldStyle | None = None
    """How it marks what an app fills in, where that is known."""
    choice: PromptChoice | None = None
    """What is known of it where it was chosen for the query."""


class RoutedPrompt(NamedTuple):
    """A system prompt that is yet to be chosen, for each query anew."""

    chooser: PromptChooser
    source: str
    """As that of the prompts that it chooses."""
    placeholders: FieldStyle | None = None
    """How they mark what an app fills in, where that is known."""

    async def choose(self, query: str) -> ChosenPrompt:
        """Return the prompt for a query; for one without a text the best single prompt, where the chooser knows it.

        Raises:
            RewardModelError: the choice is blank, or the chooser's own.
            ReplyError: a chooser that is not asynchronous made none in time.
        """
        if not query.strip() and isinstance(self.chooser, HasBestPrompt):
            reason = "the query has no text"
            choice = PromptChoice(prompt=self.chooser.best_prompt, has_abstained=True, reason=reason)
        else:
            choice = await call_own(self.chooser.achoose, query, called="the prompt's chooser", is_bounded=False)
        text = clean_surrogates(choice.prompt)
        if not text.strip():
            raise RewardModelError(
                f"The system prompt ({self.source}): a blank one was chosen. Train the router on prompts that have a "
                "text."
            )
        return ChosenPrompt(text, self.source, self.placeholders, choice)


def find_prompt(
    given: GivenPrompt | ChosenPrompt | None,
    *,
    model: str,
    registry: PromptSource | None = None,
    routers: Routers | None = None,
) -> ChosenPrompt | RoutedPrompt:
    """Return the prompt that was given, else the registry's for the model, else the general alignment prompt.

    Where a registered prompt has a router, and the registry knows its file, that chooses.

    Args:
        given: The prompt to use, whatever the registry holds.
        model: The model's name, as ``provider:model``; the registry is asked for it, and for it without the provider.
        registry: Prompts that were optimised for models.
        routers: Knows the choosers of routers' files, those of registered prompts.

    Raises:
        SettingsError: the given prompt is blank.
        UsageError: the registry cannot be read.
    """
    if isinstance(given, ChosenPrompt):
        return given
    if isinstance(given, RunResult):
        return ChosenPrompt(given.system_prompt, f"run {given.thread_id}")
    if isinstance(given, str):
        if not given.strip():
            raise SettingsError("The system prompt is blank: give a text, or none for the model's own prompt.")
        return ChosenPrompt(given, "own")
    if isinstance(given, Path):
        return RoutedPrompt((routers or Routers()).at(given), f"router {given.stem}")
    if isinstance(given, PromptChooser):
        return RoutedPrompt(given, f"router {_name_of(given)}")
    found = given
    if found is None and registry is not None:
        found = registry.find(model) or registry.find(model.partition(":")[2] or model)
    if found is None:
        return ChosenPrompt(GENERAL_PROMPT, "general")
    source = f"registry {found.model}"
    if not isinstance(found, RegisteredPrompt):
        return ChosenPrompt(found.system_prompt, source)
    path = registry.find_router(found) if isinstance(registry, RouterSource) else None
    if path is not None:
        return RoutedPrompt((routers or Routers()).at(path), source, found.placeholders)
    return ChosenPrompt(found.system_prompt, source, found.placeholders)


def _name_of(chooser: PromptChooser) -> str:
    name = getattr(chooser, "name", None)
    return name if isinstance(name, str) and name else type(chooser).__name__
