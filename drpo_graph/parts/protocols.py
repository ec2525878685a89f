"""What a user may replace, each a small Protocol; :mod:`drpo_graph.parts.defaults` holds our defaults.

A replacement gets the run's :class:`~drpo_graph.calls.roles.Models`: calls made through them are limited, retried,
counted and kept in the ledger like our own. ``docs/extending.md`` shows one of each.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from drpo_graph.calls.roles import Models
from drpo_graph.parts.responders import PromptResponder
from drpo_graph.parts.rewrite_guards import NO_GUARD, RewriteGuard
from drpo_graph.parts.screens import RewriteScreen
from drpo_graph.records import (
    CandidateRef,
    Critique,
    ICLExample,
    MetricSelection,
    Query,
    Record,
    RejectedRewrite,
    Rollout,
)
from drpo_graph.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class RewriteRequest:
    """What a rewriter works from."""

    candidate_id: str
    prompt: str
    """The prompt to improve."""
    former_prompts: Sequence[str]
    """Earlier prompts of its path, oldest first, without the current one."""
    examples: Sequence[tuple[Query, Rollout]]
    """The queries it was last run on, with its responses and critiques; unscored ones are left out."""
    num_rewrites: int
    seed: int
    """Sampling seed of this request; equal runs get equal seeds."""
    rejected: Sequence[RejectedRewrite] = ()
    """What a former run tried, and found worse."""
    guard: RewriteGuard = NO_GUARD
    """Says whether a rewrite can be used. Those that cannot are dropped; asked in time, a model can mend them."""


class MetricSelector(Protocol):
    """Chooses the metrics that matter for a query."""

    async def select_metrics(self, query: Query, *, models: Models) -> MetricSelection:
        """Return the metrics; raise ``ReplyError`` when none can be had."""
        ...


class Critic(Protocol):
    """Scores a response."""

    async def critique(self, query: Query, response: str, *, selection: MetricSelection, models: Models) -> Critique:
        """Return the critique; raise ``ReplyError`` to leave the response unscored, with that reason."""
        ...


class Reward(Record):
    """What a reward function returns."""

    score: float
    """1 (worst) to 5 (best)."""
    feedback: str = ""
    """What the optimizer is told about it."""


class RewardFunction(Protocol):
    """A score that needs no critic: a test, a regular expression, a reward model behind an API."""

    def __call__(self, query: Query, response: str) -> Awaitable[Reward] | Reward:
        """Return the reward of a response; where it is not asynchronous, it runs in a thread."""
        ...


class Rewriter(Protocol):
    """Writes better prompts."""

    async def rewrite(self, request: RewriteRequest, *, models: Models) -> Sequence[str]:
        """Return up to ``request.num_rewrites`` prompts; raise ``ReplyError`` when there is none."""
        ...


class BeamPolicy(Protocol):
    """Decides which candidates go on. Must be a pure function, or a resumed run differs from an unbroken one."""

    def __call__(self, children: Sequence[CandidateRef], *, settings: Settings, level: int) -> list[CandidateRef]:
        """Return the beam, best first, from the level's scored children in creation order."""
        ...


class ExampleRetriever(Protocol):
    """Finds the ICL examples that are shown beside the system prompt, in the search and where a prompt is used."""

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        """Return up to ``k`` examples for a query, in the order in which they are shown."""
        ...


@dataclass(frozen=True, slots=True)
class Components:
    """The replaceable parts of a search."""

    selector: MetricSelector
    critic: Critic
    rewriter: Rewriter
    beam_policy: BeamPolicy
    example_retriever: ExampleRetriever | None = None
    """Finds the ICL examples that responses are sampled with; none are shown without."""
    responder: PromptResponder | None = None
    """An app in the base model's place."""
    screen: RewriteScreen | None = None
    """Chooses among rewrites where more are written than are run."""
    data_digest: str = ""
    """Tells apart what the parts work from and the settings only name: a metrics cache, examples, rewards, an app."""
    identities: Mapping[str, JsonValue] = field(default_factory=dict)
    """What tells parts of the user's own from others, by what they replace."""
