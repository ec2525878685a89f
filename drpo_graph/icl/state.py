"""What the graph over ICL examples carries: ids and numbers; texts stand in the run's archive."""

import operator
from typing import Annotated, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict

from drpo_graph.search.state import replace_or_extend

DEFAULT_NUM_ITERS = 5
DEFAULT_NUM_SAMPLES = 1


class ICLInput(TypedDict):
    """What a run over ICL examples is given."""

    examples: NotRequired[list[dict[str, str]]]
    """Each with ``query`` and ``response``; absent where they are laid down already."""
    num_iters: NotRequired[int]
    """Rounds of rewriting per example, at most; 5 when absent."""
    num_samples: NotRequired[int]
    """Rewrites per round; 1 when absent."""


class ICLOutput(TypedDict, total=False):
    """What it hands back."""

    result: dict[str, JsonValue]
    """A :class:`~drpo_graph.records.ICLResult` as JSON."""


class OutcomeRef(TypedDict):
    """What became of one example."""

    query_id: str
    best_id: str
    """``<iteration>.<place>`` of the response kept; ``0.0`` is the given one."""
    initial_reward: float | None
    reward: float | None
    iterations: int


class ICLState(ICLInput, ICLOutput, total=False):
    """Channels of the top graph."""

    format: int
    run_id: str
    fingerprints: dict[str, str]
    num_examples: int
    position: int
    """How many of them former steps, and the one in work, have taken."""
    query_ids: list[str]
    """Of the step in work."""
    num_asked_again: int
    """How often the user had let failed samples be asked for again when examples were last begun again for it."""
    position_again: int
    """Up to which of them those without a reward have been begun again."""
    outcomes: Annotated[list[OutcomeRef], operator.add]


class ExampleTask(TypedDict):
    """Payload of one ``Send``: optimise one example."""

    run_id: str
    query_id: str
    num_iters: int
    num_samples: int


class JudgedRef(TypedDict):
    """A response's reward."""

    response_id: str
    reward: float | None


class ExampleState(ExampleTask, total=False):
    """Channels of one example's subgraph."""

    iteration: int
    """The round in work; 0 judges the given response."""
    response_ids: list[str]
    """Responses of this round, in creation order."""
    judged: Annotated[list[JudgedRef], replace_or_extend]
    initial_reward: float | None
    best: JudgedRef
    is_done: bool
    outcomes: list[OutcomeRef]


class ExampleOutput(TypedDict):
    """What an example adds to the run."""

    outcomes: list[OutcomeRef]


class JudgeTask(TypedDict):
    """Payload of one ``Send``: judge one response."""

    run_id: str
    query_id: str
    response_id: str
