"""What a run tells while it runs: one versioned schema for console, log, report and parent graphs.

Every event is a frozen record with a ``type``; :func:`parse_event` reads one back. Events are sent through LangGraph's
custom stream and to the run's sinks, and may repeat after a resume: consumers key them by their ids.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from drpo_graph.events.base import EventBase, ProgressEvent, UnknownEvent, read_newer
from drpo_graph.records import (
    CollectionResult,
    ICLResult,
    Metric,
    Origin,
    PromptOutcome,
    Record,
    Role,
    RunResult,
    Usage,
)


class RunStarted(EventBase):
    """A run begins, or goes on after an interruption."""

    type: Literal["run_started"] = "run_started"
    is_resumed: bool
    num_queries: int
    num_levels: int
    beam_size: int
    n_actions: int
    queries_per_level: int
    models: dict[str, str]
    """Model by role."""
    initial_prompt: str
    max_concurrency: int = 0
    """Calls in flight per endpoint at most; 0 where that was not told."""
    former_s: float = 0.0
    """Seconds that former processes have worked on the run."""


class LevelStarted(ProgressEvent):
    """A level of the search begins."""

    type: Literal["level_started"] = "level_started"
    level: int
    """0 is the root's evaluation."""
    max_depth: int
    query_ids: tuple[str, ...]
    num_rollouts: int
    """Rollouts this level is expected to need."""
    num_done: int = 0
    """Those that were done before an interruption."""


class MetricsSelected(EventBase):
    """The metrics that matter for a query are known."""

    type: Literal["metrics_selected"] = "metrics_selected"
    query_id: str
    metrics: tuple[Metric, ...]
    reasoning: str


class CandidateCreated(EventBase):
    """A rewrite (or a kept prompt) joins the level."""

    type: Literal["candidate_created"] = "candidate_created"
    candidate_id: str
    parent_id: str | None
    depth: int
    origin: Origin
    prompt: str
    author: str | None = None
    """Who wrote it, where a person did."""


class RolloutScored(ProgressEvent):
    """A candidate's response to one query was scored, or could not be."""

    type: Literal["rollout_scored"] = "rollout_scored"
    candidate_id: str
    query_id: str
    level: int
    reward: float | None
    rollout_id: str = ""
    """Of its response and critique: ``read_rollouts`` fetches the texts. Empty in events of earlier versions."""
    failure_kind: str | None = None
    detail: str = ""


class BeamEntry(Record):
    """One place in the beam."""

    candidate_id: str
    reward: float | None
    path_reward: float | None
    origin: Origin


class Remaining(Record):
    """About what a run still needs, if no level is easy."""

    calls: int
    tokens: int
    cost_usd: float | None
    """``None`` where a model has no price."""
    num_validation_rollouts: int = 0
    """Responses on held-out queries, all at once in the end; their calls are among those above."""


class LevelFinished(ProgressEvent):
    """A level is scored and the beam is chosen."""

    type: Literal["level_finished"] = "level_finished"
    level: int
    max_depth: int
    beam: tuple[BeamEntry, ...]
    num_children: int
    num_unscored: int
    is_easy: bool
    usage: Usage
    """Everything the run has used so far."""
    cost_usd: float | None = None
    """What that cost, where every model has a price."""
    remaining: Remaining | None = None


class CallStarted(EventBase):
    """The first request of a model call is sent; :class:`CallFinished` or :class:`CallFailed` follows, with its key.

    A call whose run was stopped at once, or killed, has neither: with the process it is over.
    """

    type: Literal["call_started"] = "call_started"
    role: Role
    model: str
    key: str
    """The call's, in the ledger: equal calls have one."""
    num_samples: int
    level: int | None = None
    candidate_id: str | None = None
    """The candidate that answers, or is rewritten. Of equal calls in flight at once, the first one's."""
    query_id: str | None = None


class CallFailed(EventBase):
    """A model call that was started came to nothing: it was refused or tried too often, or the run stops."""

    type: Literal["call_failed"] = "call_failed"
    role: Role
    model: str
    key: str
    kind: str


class CallFinished(EventBase):
    """A model call finished and is stored in the ledger."""

    type: Literal["call_finished"] = "call_finished"
    role: Role
    model: str
    key: str
    num_samples: int
    duration_s: float
    """From the first request to the reply, waits between tries included."""
    usage: Usage
    cost_usd: float | None = None
    """Where the model has a price."""
    from_ledger: bool = False
    """True when it had been paid for before: by a former process, or for an equal candidate."""


class CallRetried(EventBase):
    """A request failed in a way that asking again may mend."""

    type: Literal["call_retried"] = "call_retried"
    role: Role
    model: str
    key: str = ""
    """The call's; empty in events of earlier versions."""
    kind: str
    attempt: int
    wait_s: float


class EndpointLost(EventBase):
    """No server of a model answers any more; calls wait, and one of them tries it from time to time."""

    type: Literal["endpoint_lost"] = "endpoint_lost"
    endpoint: str
    kind: str
    detail: str
    lost_s: float
    """Since the first failure."""
    max_outage_s: float
    """How long the run waits."""


class EndpointBack(EventBase):
    """A lost endpoint answers again; the run goes on."""

    type: Literal["endpoint_back"] = "endpoint_back"
    endpoint: str
    lost_s: float


class ReviewRequested(EventBase):
    """A level is scored, and the run waits for a person's decision about its beam."""

    type: Literal["review_requested"] = "review_requested"
    level: int
    candidate_ids: tuple[str, ...]
    is_last: bool
    """Whether no level follows."""


class ReviewDecided(EventBase):
    """A person has decided about a level's beam; what is not named is approved."""

    type: Literal["review_decided"] = "review_decided"
    level: int
    author: str
    vetoed_ids: tuple[str, ...]
    edited_ids: tuple[str, ...]
    note: str = ""


class ValidationStarted(ProgressEvent):
    """The search is over; its contenders are run on the held-out queries."""

    type: Literal["validation_started"] = "validation_started"
    candidate_ids: tuple[str, ...]
    num_rollouts: int


class ValidationFinished(EventBase):
    """The contenders were compared on held-out queries."""

    type: Literal["validation_finished"] = "validation_finished"
    selected_id: str
    difference: float | None
    interval_low: float | None
    interval_high: float | None
    is_significant: bool


class RunFinished(EventBase):
    """The run has its result."""

    type: Literal["run_finished"] = "run_finished"
    result: RunResult


class RunStopped(EventBase):
    """The run ended before its result; ``drpo resume`` continues it when ``is_resumable``."""

    type: Literal["run_stopped"] = "run_stopped"
    reason: Literal["interrupted", "waiting", "failed"]
    message: str
    is_resumable: bool
    resume_flags: str = ""
    """What the command that resumes it needs besides, e.g. ``--max-calls 200``."""


class ICLStarted(EventBase):
    """The optimisation of ICL examples begins, or goes on."""

    type: Literal["icl_started"] = "icl_started"
    is_resumed: bool
    num_examples: int
    num_iters: int
    num_samples: int
    models: dict[str, str] = Field(default_factory=dict)
    """Model by role."""
    former_s: float = 0.0
    """Seconds that former processes have worked on the run."""


class ICLExampleFinished(ProgressEvent):
    """An ICL example has its response."""

    type: Literal["icl_example_finished"] = "icl_example_finished"
    example_id: str
    initial_reward: float | None
    reward: float | None
    iterations: int
    detail: str = ""
    """Why it is unscored, if it is."""


class ICLFinished(EventBase):
    """All ICL examples have their responses."""

    type: Literal["icl_finished"] = "icl_finished"
    result: ICLResult


class CollectionStarted(EventBase):
    """The collection of demonstrations begins, or goes on."""

    type: Literal["collection_started"] = "collection_started"
    is_resumed: bool
    num_queries: int
    num_trials: int
    """Draws of each pair of a query and a prompt."""
    num_planned: int
    """Trials in all."""
    checker: str
    prompts: tuple[PromptOutcome, ...]
    """With what was done of them before."""
    models: dict[str, str] = Field(default_factory=dict)
    """Model by role."""
    former_s: float = 0.0
    """Seconds that former processes have worked on the run."""


class TrialFinished(ProgressEvent):
    """A prompt was tried on a query."""

    type: Literal["trial_finished"] = "trial_finished"
    query_id: str
    prompt_name: str
    trial: int
    """Which draw of the pair, from 0."""
    outcome: float | None
    """From 0 to 1; ``None`` where there is no reply, or it could not be judged."""
    tokens: int | None = None
    """What its call used, where the server tells."""
    failure_kind: str | None = None
    detail: str = ""
    was_unlabelled: bool = False
    """Whether it had been tried before, and came to nothing."""


class CollectionFinished(EventBase):
    """All trials are made."""

    type: Literal["collection_finished"] = "collection_finished"
    result: CollectionResult
    output: str = ""
    """The file that the demonstrations are written to; one in the run's folder when empty."""


class Warned(EventBase):
    """Something that affects the result, in one line."""

    type: Literal["warned"] = "warned"
    message: str


_Known = (
    RunStarted
    | LevelStarted
    | MetricsSelected
    | CandidateCreated
    | RolloutScored
    | LevelFinished
    | CallStarted
    | CallFinished
    | CallFailed
    | CallRetried
    | EndpointLost
    | EndpointBack
    | ReviewRequested
    | ReviewDecided
    | ValidationStarted
    | ValidationFinished
    | RunFinished
    | RunStopped
    | ICLStarted
    | ICLExampleFinished
    | ICLFinished
    | CollectionStarted
    | TrialFinished
    | CollectionFinished
    | Warned
)

Event = _Known | UnknownEvent

_adapter: TypeAdapter[_Known] = TypeAdapter(Annotated[_Known, Field(discriminator="type")])
_TYPES = frozenset(one.model_fields["type"].default for one in get_args(_Known))


def parse_event(event: str | bytes | Mapping[str, object]) -> Event:
    """Return the event in one line of a JSONL log, or in one part of LangGraph's custom stream.

    Records of newer versions are read as well: unknown fields of an event are kept, those of records in it are left
    out, and an event of an unknown type or of a newer schema is an :class:`UnknownEvent`.

    Raises:
        pydantic.ValidationError: it is no event.
    """
    try:
        if isinstance(event, str | bytes):
            return _adapter.validate_json(event)
        # JSON has no tuples, so a stream's parts are read as JSON is.
        return _adapter.validate_python(event)
    except ValidationError as error:
        newer = read_newer(event, error, _TYPES)
        return newer if isinstance(newer, UnknownEvent) else _adapter.validate_python(newer)
