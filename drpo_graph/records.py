"""Records: what users hold, what files store. Frozen, validated, JSON-native."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import TypedDict

from drpo_graph.errors import FailureKind

Role = Literal["base", "metrics", "critic", "optimizer", "embeddings"]
"""Which model is called: the one being aligned, metric selector, judge, prompt writer, and what embeds texts."""

ROLES: tuple[Role, ...] = ("base", "metrics", "critic", "optimizer")

Origin = Literal["initial", "rewrite", "kept", "human"]
"""Where a candidate's prompt comes from; ``kept`` is the parent's prompt, tried again beside or instead of rewrites,
and ``human`` what a person made of it in a review."""

RunStatus = Literal["running", "done", "interrupted", "waiting", "failed"]
"""``waiting``: for the decision of a person."""

MIN_SCORE, MAX_SCORE = 1, 5
ROOT_ID = "0"
PlaceholderStyle = Literal["none", "auto", "format", "mustache", "dollar"]
Evidence = Literal["initial_prompt", "held_out_queries", "same_queries", "not_better", "not_compared"]


class Record(BaseModel):
    """Base of all records: immutable, and strict about unknown fields."""

    # An error's text may be shown and stored; what was given, which may be a key, is not part of it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Turn(Record):
    """What was said before a query."""

    role: Literal["user", "assistant"]
    content: str


class Query(Record):
    """A request from the dataset."""

    id: str
    """Unique within the dataset."""
    text: str
    """What the base model is asked."""
    kind: str = ""
    """Free label of the group the query belongs to, e.g. ``open``, ``knowledge``, ``unsafe``."""
    tags: tuple[str, ...] = ()
    """Free labels."""
    values: dict[str, str] = Field(default_factory=dict)
    """What is filled into the prompt's placeholders for this query, by name."""
    history: tuple[Turn, ...] = ()
    """The conversation before it, oldest first; it is asked as the next turn."""
    reference: str = ""
    """What is known of a good answer: the right one, a rubric, a target; JSON where it is no text. The critic is shown
    it, and reward functions may read it; neither the base model nor the optimizer is."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else the dataset says of it, for reward functions and parts of the user's own."""

    @property
    def transcript(self) -> str:
        """The text with the conversation before it, as those who judge an answer are shown it."""
        if not self.history:
            return self.text
        before = "\n\n".join(f"({one.role} before)\n{one.content}" for one in self.history)
        return f"{before}\n\n(user now)\n{self.text}"

    def __hash__(self) -> int:
        return hash((self.id, self.text, self.kind, self.tags))

    @model_serializer(mode="wrap")
    def _leave_out_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        # What a query lacks is stored as it was before there was any: what is stored is compared on resume.
        fields: dict[str, object] = serialize(self)
        empty = {
            "values": self.values,
            "history": self.history,
            "reference": self.reference,
            "metadata": self.metadata,
        }
        return {name: one for name, one in fields.items() if empty.get(name, True)}


class ICLExample(Record):
    """An in-context example: a query and a response worth imitating, shown beside the system prompt."""

    query: str
    response: str


class Metric(Record):
    """A quality that the critic scores from 1 to 5 (the papers also say *aspect*)."""

    name: str
    definition: str
    """What a high score means, in words the critic is shown."""


class MetricSelection(Record):
    """The metrics that matter for one query: DRPO's dynamic reward (arXiv 2411.08733, section 3.2)."""

    metrics: tuple[Metric, ...]
    reasoning: str = ""
    """The selector's reasons, shown to the critic."""


class MetricScore(Record):
    """One metric's score with the critic's reason."""

    metric: str
    score: float
    """1 (worst) to 5 (best)."""
    rationale: str = ""
    hard_score: float | None = None
    """The whole score that the critic wrote, where ``score`` is the expectation over what it might have written."""
    weight: float = Field(1.0, gt=0)
    """Its share in the reward, beside the other scores' weights."""


class Critique(Record):
    """One response's metric scores."""

    scores: tuple[MetricScore, ...]

    @property
    def reward(self) -> float | None:
        """Weighted mean of the metric scores, 1 to 5, or ``None`` when nothing was scored."""
        if not self.scores:
            return None
        return sum(one.weight * one.score for one in self.scores) / sum(one.weight for one in self.scores)


class Failure(Record):
    """Why a sample has no usable reply."""

    kind: FailureKind
    detail: str
    """One line for people: which call, what came."""


class Rollout(Record):
    """One candidate run on one query: the base model's response and its critique."""

    candidate_id: str
    query_id: str
    response: str | None
    """The base model's reply, ``None`` when it gave none."""
    critique: Critique | None
    """``None`` when unscored."""
    reward: float | None
    """Mean metric score, 1 to 5; ``None`` when unscored, never 0 for a failure (except under ``compat="drpo"``)."""
    failure: Failure | None = None
    """Set exactly when the critique is missing."""


class Candidate(Record):
    """A system prompt with its place in the search tree."""

    id: str
    """``0`` for the root, else ``<depth>.<parent's place in the beam>.<child>``: unique and in creation order."""
    parent_id: str | None
    depth: int = Field(ge=0)
    """Rewrites (or kept levels) since the root."""
    prompt: str
    origin: Origin
    author: str | None = None
    """Who wrote it, where a person did."""
    rollouts: tuple[Rollout, ...] = ()
    """One per query of its level, in the level's order."""
    reward: float | None = None
    """Mean reward over its scored rollouts."""
    path_reward: float | None = None
    """Aggregate of the rewards from depth 1 to here; for the root, its own reward."""


class RejectedRewrite(Record):
    """A rewrite that a former run tried, and that scored below the prompt it was made from."""

    prompt: str
    reward: float
    parent_reward: float
    """Of the prompt that it was made from, on the queries of its own level."""


class WarmStart(Record):
    """What a run begins with that another one found."""

    source: str
    """Where it comes from: a former run, a file, a model's name."""
    system_prompt: str
    """The initial prompt."""
    rejected: tuple[RejectedRewrite, ...] = ()
    """Shown to the optimizer as tried and worse."""


class Usage(Record):
    """What finished calls consumed."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Part of ``prompt_tokens`` that the server took from its prefix cache, where it tells."""
    reasoning_tokens: int = 0
    """Part of ``completion_tokens`` that a reasoning model thought with, where the server tells."""

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum of two usages."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


class ICLOutcome(Record):
    """What became of one ICL example."""

    id: str
    query: str
    response: str
    """The best-scored one: the given one unless a rewrite scored higher."""
    initial_reward: float | None
    reward: float | None
    """Of ``response``; ``None`` when nobody could score it."""
    iterations: int
    """Rounds of rewriting."""
    failure: Failure | None = None
    """Why the given response is unscored."""


class ICLResult(Record):
    """What a run over ICL examples found; equal runs hold equal results."""

    thread_id: str
    status: RunStatus
    num_iters: int
    num_samples: int
    examples: tuple[ICLOutcome, ...]
    num_unscored: int
    usage_by_role: dict[str, Usage]
    cost_by_role: dict[str, float] = Field(default_factory=dict)
    failures_by_kind: dict[str, int]
    """Responses without a usable critique, rounds without a usable rewrite, transport failures."""
    fingerprints: dict[str, str]

    @property
    def published_name(self) -> str:
        """The name that the published code gives the file of optimised examples."""
        return f"out_{len(self.examples)}_{self.num_iters}.json"


class PromptOutcome(Record):
    """What became of one prompt's trials on queries."""

    name: str
    prompt: str
    num_labelled: int = 0
    """Trials with an outcome."""
    num_unlabelled: int = 0
    """Trials whose reply could not be had, or not be judged."""
    mean_outcome: float | None = None
    """From 0 to 1, over the labelled trials; ``None`` without any."""
    mean_tokens: float | None = None
    """What a labelled trial's call used, in and out, over those whose server tells."""


class CollectionResult(Record):
    """What a run over prompts and queries collected; equal runs hold equal results."""

    thread_id: str
    status: RunStatus
    model: str
    """Who answered."""
    checker: str
    """What judged."""
    num_queries: int
    num_trials: int
    """Draws of each pair of a query and a prompt."""
    prompts: tuple[PromptOutcome, ...]
    usage_by_role: dict[str, Usage]
    cost_by_role: dict[str, float] = Field(default_factory=dict)
    failures_by_kind: dict[str, int]
    """Trials without an outcome, and transport failures."""
    fingerprints: dict[str, str]

    @property
    def num_labelled(self) -> int:
        """Trials with an outcome: the rows of the demonstrations."""
        return sum(one.num_labelled for one in self.prompts)

    @property
    def num_unlabelled(self) -> int:
        """Trials without one."""
        return sum(one.num_unlabelled for one in self.prompts)


MIN_QUERIES = 6
"""With fewer of them not even a difference of one sign on all queries is more than chance: 2^-5 is above 2.5%."""


class PairedComparison(Record):
    """A candidate against the initial prompt on the same validation queries."""

    candidate_id: str
    num_queries: int
    """Queries on which both were scored."""
    reward: float | None
    """The candidate's mean reward on all validation queries on which it was scored."""
    difference: float | None
    """Mean of (candidate - initial) over the shared queries."""
    interval_low: float | None
    interval_high: float | None
    """Bounds of the 95% interval of ``difference``, widened for the number of contenders; ``None`` where the queries
    are too few to say anything."""
    needed_queries: int | None = None
    """About how many queries would show a difference like this one, in four of five cases; ``None`` where it is none,
    and in results of earlier versions."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval lies wholly above zero."""
        return self.interval_low is not None and self.interval_low > 0


class Validation(Record):
    """Selection on held-out queries: which candidate won, and whether the gain is more than chance."""

    num_queries: int
    initial_reward: float | None
    comparisons: tuple[PairedComparison, ...]
    """Every contender but the initial prompt, best first."""
    selected_id: str
    is_significant: bool
    """False means: no significant improvement over the initial prompt was shown."""


class RunResult(Record):
    """What a run found. ``result.json`` holds exactly this; equal runs write equal bytes."""

    thread_id: str
    status: RunStatus
    system_prompt: str
    """The delivered prompt."""
    candidate_id: str
    reward: float | None
    path_reward: float | None
    initial_prompt: str
    initial_reward: float | None
    """The initial prompt's reward on the root's queries."""
    initial_reward_same_queries: float | None = None
    """The initial prompt's reward on the very queries behind ``reward``, where the search measured it."""
    evidence: Evidence | None = None
    """On which queries it beat the initial prompt, if on any; ``None`` in results of earlier versions."""
    depth: int
    """Levels searched."""
    trace: tuple[str, ...]
    """Ids of the candidates from the root to the delivered one."""
    beam: tuple[str, ...]
    """Ids of the final beam, best first."""
    validation: Validation | None = None
    usage_by_role: dict[str, Usage]
    cost_by_role: dict[str, float] = Field(default_factory=dict)
    """In USD, of the roles whose models have a price."""
    failures_by_kind: dict[str, int]
    """Samples without a usable reply and transport failures, by kind."""
    unusable_by_kind: dict[str, int] = Field(default_factory=dict)
    """Single replies that could not be used, by kind; most were asked for again, or repaired, with success."""
    fingerprints: dict[str, str]
    format: int


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not ``None``, or ``None`` when there are none."""
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else None


def metric_key(name: str) -> str:
    """Return a metric name without case and separators: ``Critical Thinking`` and ``critical-thinking`` are one."""
    return re.sub(r"[\W_]+", "", name).casefold()


def digest_json(value: JsonValue) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CandidateRef(TypedDict):
    """A candidate as the state knows it: numbers and ids, no text."""

    id: str
    parent_id: str | None
    depth: int
    origin: Origin
    prompt_hash: str
    """First 16 hex digits of the prompt's SHA-256: equal prompts are found without loading them."""
    lineage: list[str]
    """Ids of the last prompts of its path, oldest first, itself included; bounded by ``history_window``."""
    query_ids: list[str]
    """The queries it was last run on."""
    reward: float | None
    path_sum: float
    """Sum of the rewards from depth 1 on, added in order of depth."""
    path_count: int
    """How many of them were scored."""
    path_reward: float | None


class RolloutRef(TypedDict):
    """A finished rollout: where it is, and what it counts."""

    candidate_id: str
    query_id: str
    reward: float | None
    is_failed: bool
