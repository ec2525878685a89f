"""What the graph carries and checkpoints: JSON-native, and no larger at level 100 than at level 1.

Texts (prompts, responses, critiques, queries) stand once in the run's archive; the state names them by id.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from drpo_graph.records import CandidateRef, Query, RolloutRef

STATE_FORMAT = 2
"""Raised whenever a checkpoint of the former format could not be continued."""

Phase = Literal["search", "validate", "conclude"]

BEGIN_WITH = "begin_with"


def replace_or_extend(
    present: list[JsonValue], update: list[JsonValue] | dict[str, list[JsonValue]] | None
) -> list[JsonValue]:
    """Reducer: parallel branches extend the list, ``None`` empties it for the next level.

    ``{"begin_with": [...]}`` takes the place of what a former run on the thread left.
    """
    if isinstance(update, dict):
        return list(update[BEGIN_WITH])
    return [] if update is None else [*present, *update]


class SearchInput(TypedDict, total=False):
    """What a caller, or a parent graph, hands to the search."""

    initial_prompt: str
    """Overrides the settings' initial prompt."""
    queries: Sequence[JsonValue | Query]
    """Training queries: texts, records, or objects with ``text`` and optional ``id``, ``kind``, ``tags``."""
    validation_queries: Sequence[JsonValue | Query]
    """Held-out queries, same forms; selection is made on them when given."""
    rejected_rewrites: Sequence[JsonValue]
    """Rewrites that were tried before and found worse: objects with ``prompt``, ``reward`` and ``parent_reward``."""


class SearchOutput(TypedDict, total=False):
    """What the search hands back."""

    system_prompt: str
    """The delivered prompt."""
    result: dict[str, JsonValue]
    """A :class:`~drpo_graph.records.RunResult` as JSON."""


class SearchState(SearchInput, SearchOutput, total=False):
    """The channels of the top graph."""

    format: int
    run_id: str
    fingerprints: dict[str, str]
    phase: Phase
    level: int
    """The level in work; 0 is the root's evaluation."""
    max_depth: int
    num_increases: int
    """Levels that easy levels have added so far."""
    num_stalled: int
    """Rounds in a row without any scored candidate."""
    num_repeats: int
    """Levels that were run again so far: each took one more round of queries."""
    is_repeat: bool
    """Whether the level's candidates are there already, and are to be run on other queries."""
    num_asked_again: int
    """How often the user had let failed samples be asked for again by the last time that these were looked for."""
    forked_level: int
    """In a fork, the level of the former run after which it begins."""
    num_queries: int
    query_ids: list[str]
    """The level's queries; every child of the level is run on them."""
    prefetch_ids: list[str]
    """Queries of the next level whose metrics are selected beside this one."""
    selects_inline: bool
    """Whether rollouts select their query's metrics themselves: at the root, and where none are selected ahead."""
    awaits_review: bool
    """Whether a person is to decide about the beam before the run goes on."""
    is_easy: bool
    """Whether a parent of the level in work was good enough to be kept."""
    validation_ids: list[str]
    contender_ids: list[str]
    """Candidates to be compared on the validation queries, the root first."""
    beam: list[CandidateRef]
    initial_reward: float | None
    children: Annotated[list[CandidateRef], replace_or_extend]
    rollouts: Annotated[list[RolloutRef], replace_or_extend]


class ExpandTask(TypedDict):
    """Payload of one ``Send`` to the expand subgraph: rewrite a candidate and run its children."""

    run_id: str
    level: int
    beam_rank: int
    parent: CandidateRef
    query_ids: list[str]
    """The level's queries, on which the children are run."""
    selects_inline: bool


class ExpandState(ExpandTask, total=False):
    """Channels of the expand subgraph."""

    children: list[CandidateRef]
    rollouts: Annotated[list[RolloutRef], replace_or_extend]


class ExpandOutput(TypedDict):
    """What the expand subgraph adds to the level."""

    children: list[CandidateRef]
    rollouts: list[RolloutRef]


class RolloutTask(TypedDict):
    """Payload of one ``Send`` to the rollout subgraph: one candidate on one query."""

    run_id: str
    level: int
    candidate_id: str
    query_id: str
    selects_inline: bool
    """Whether the query's metrics may still be to be selected, which then happens beside the response."""


class RolloutState(RolloutTask, total=False):
    """Channels of the rollout subgraph."""

    response_key: str | None
    """Ledger key of the call that gave the response, or where an app's response stands; ``None`` without one."""
    failure: dict[str, JsonValue] | None
    """Why there is no response."""
    rollouts: list[RolloutRef]


class RolloutOutput(TypedDict):
    """What a rollout adds to its level."""

    rollouts: list[RolloutRef]


class MetricsTask(TypedDict):
    """Payload of one ``Send`` that selects a coming query's metrics ahead of time."""

    run_id: str
    query_id: str
