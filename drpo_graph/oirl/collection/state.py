"""What the graph of a collection carries: numbers. Texts and outcomes stand in the run's archive."""

from typing import NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict


class CollectionInput(TypedDict):
    """What a collection is given."""

    questions: NotRequired[list[dict[str, JsonValue]]]
    """Each a :class:`~drpo_graph.oirl.collection.inputs.Question` as JSON; absent where they are laid down already."""
    prompts: list[dict[str, JsonValue]]
    """Each a :class:`~drpo_graph.oirl.collection.inputs.TriedPrompt` as JSON."""
    num_trials: int
    """Draws of each pair of a query and a prompt."""
    placement: str
    output: str


class CollectionOutput(TypedDict, total=False):
    """What it hands back."""

    result: dict[str, JsonValue]
    """A :class:`~drpo_graph.records.CollectionResult` as JSON."""


class CollectionState(CollectionInput, CollectionOutput, total=False):
    """Channels of the graph."""

    format: int
    run_id: str
    fingerprints: dict[str, str]
    position: int
    """How many of the planned trials former steps, and the one in work, have taken."""
    units: list[list[int]]
    """The trials of the step in work: numbers of query, prompt and draw."""


class TrialTask(TypedDict):
    """Payload of one ``Send``: try a prompt on a query."""

    run_id: str
    placement: str
    unit: list[int]
