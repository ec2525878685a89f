"""One sample of each role on one query, through a run's templates, parsers and ladder: is the model of use there?"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from langgraph.store.memory import InMemoryStore

from drpo_graph.data.datasets import load_bundled_queries
from drpo_graph.errors import ModelCallError, ReplyError
from drpo_graph.models.clients import ModelClient
from drpo_graph.models.request import Reply, Request
from drpo_graph.models.transport import Transport
from drpo_graph.parts.protocols import RewriteRequest
from drpo_graph.records import Critique, MetricSelection, Query, Record, Role, Rollout, Usage
from drpo_graph.search.assembly import build_context
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.settings.settings import Settings

_RUN_ID = "checkup"
_STAND_IN_RESPONSE = "I will gladly help with that, but I need to know a little more first: who is it for?"
"""What the critic judges where the base model is not asked, or gave nothing."""
_BOUNDS: Mapping[Role, Mapping[str, int]] = {
    "base": {},
    "metrics": {"max_rationale_chars": 300},
    "critic": {"max_rationale_chars": 300},
    "optimizer": {"max_rationale_chars": 300, "max_prompt_chars": 1500},
}


class RoleCheck(Record):
    """What came of asking a role's model once, as a run asks it."""

    role: Role
    model: str
    is_usable: bool
    verdict: str
    """``usable``, or why not and what to do."""
    reply: str
    """What the model said last, as it came."""
    reading: str
    """What was read in it; empty where nothing was."""
    rung: str
    """How the last reply was asked for: a rung of the reply ladder."""
    endpoint: str
    """``chat`` or ``completions``."""
    num_requests: int
    duration_s: float
    usage: Usage


async def check_roles(
    settings: Settings,
    roles: Sequence[Role],
    *,
    on_done: Callable[[RoleCheck], None] = lambda check: None,
    query: Query | None = None,
) -> tuple[RoleCheck, ...]:
    """Return what came of one sample of each role, in the order in which a run needs them.

    Each role has ``settings.timeout_s`` in all: a model that rambles is told from one that works soon enough. Without a
    query, a bundled one is asked.

    Raises:
        UsageError: a model string or a template cannot be used.
        ModelCallError: an endpoint cannot be used at all, as its probe found.
    """
    plain = build_context(settings, store=InMemoryStore())
    notes = {role: _Notes() for role in plain.clients}
    clients = {role: _watch(client, notes[role]) for role, client in plain.clients.items()}
    context = replace(plain, clients=clients, is_streamed=False)
    desk = _Desk(context, await context.session(_RUN_ID), query or load_bundled_queries()[0])
    checks = []
    for role, sample in desk.samples().items():
        if role in roles:
            checks.append(await _check(role, desk, notes=notes[role], sample=sample))
            on_done(checks[-1])
    return tuple(checks)


async def _check(role: Role, desk: "_Desk", *, notes: "_Notes", sample: Callable[[], Awaitable[str]]) -> RoleCheck:
    settings = desk.context.settings
    started = time.monotonic()
    notes.deadline = started + settings.timeout_s
    reading, problem = "", ""
    try:
        reading = await sample()
    except ReplyError as error:
        problem = f"{str(error).rstrip('.')}. {_advise(error, role, settings=settings, rung=notes.rung)}".strip()
    except ModelCallError as error:
        problem = str(error)
    if problem and notes.is_late:
        problem = f"no usable reply within {settings.timeout_s:g} s. {_advise_haste(role, settings)}"
    choices = notes.replies[-1].choices if notes.replies else ()
    return RoleCheck(
        role=role,
        model=settings.role(role).model,
        is_usable=not problem,
        verdict=problem or "usable",
        reply=(choices[0].refusal or choices[0].text) if choices else "",
        reading=reading,
        rung=notes.rung,
        endpoint=notes.requests[-1].endpoint if notes.requests else "",
        num_requests=len(notes.requests),
        duration_s=round(time.monotonic() - started, 3),
        usage=desk.session.ledger.usage_by_role.get(role, Usage()),
    )


@dataclass(slots=True)
class _Notes:
    """What passed between a role and its servers."""

    requests: list[Request] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    deadline: float = math.inf
    """Until when it may go on, by the monotonic clock."""
    is_late: bool = False

    @property
    def rung(self) -> str:
        """How the last reply was asked for; empty where none was."""
        return self.requests[-1].mode if self.requests else ""


@dataclass(frozen=True, slots=True)
class _WatchedTransport:
    """A transport that takes notes, and heeds the deadline in them."""

    transport: Transport
    notes: _Notes

    async def send(self, request: Request) -> Reply:
        """Return the reply to one request."""
        self.notes.requests.append(request)
        try:
            async with asyncio.timeout(max(0.0, self.notes.deadline - time.monotonic())):
                reply = await self.transport.send(request)
        except TimeoutError:
            self.notes.is_late = True
            raise
        self.notes.replies.append(reply)
        return reply


def _watch(client: ModelClient, notes: _Notes) -> ModelClient:
    replicas = tuple(replace(one, transport=_WatchedTransport(one.transport, notes)) for one in client.replicas)
    return replace(client, balancer=replace(client.balancer, replicas=replicas))


@dataclass(slots=True)
class _Desk:
    """An open session, and what the roles before left for those after."""

    context: RunContext
    session: RunSession
    query: Query
    response: str = _STAND_IN_RESPONSE
    selection: MetricSelection | None = None
    critique: Critique | None = None

    def samples(self) -> dict[Role, Callable[[], Awaitable[str]]]:
        """Return what asks each role once and returns what was read; raises ``ReplyError`` where nothing can be."""
        return {
            "base": self._sample_response,
            "metrics": self._sample_metrics,
            "critic": self._sample_critique,
            "optimizer": self._sample_rewrite,
        }

    async def _sample_response(self) -> str:
        base, prompt = self.session.models.base, self.context.settings.initial_prompt
        sample = await base.respond(base.response_format.render(system_prompt=prompt, query=self.query.text))
        self.response = sample.require(f"query {self.query.id!r}")
        return self.response

    async def _sample_metrics(self) -> str:
        selector = self.context.components.selector
        self.selection = await selector.select_metrics(self.query, models=self.session.models)
        return ", ".join(metric.name for metric in self.selection.metrics)

    async def _sample_critique(self) -> str:
        first = self.context.prompts.metrics[: self.context.settings.max_metrics]
        self.critique = await self.context.components.critic.critique(
            self.query,
            self.response,
            selection=self.selection or MetricSelection(metrics=first),
            models=self.session.models,
        )
        return ", ".join(f"{one.metric} {one.score:.3g}" for one in self.critique.scores)

    async def _sample_rewrite(self) -> str:
        examples = []
        if self.critique is not None:
            rollout = Rollout(
                candidate_id="0",
                query_id=self.query.id,
                response=self.response,
                critique=self.critique,
                reward=self.critique.reward,
            )
            examples.append((self.query, rollout))
        request = RewriteRequest(
            candidate_id="0",
            prompt=self.context.settings.initial_prompt,
            former_prompts=(),
            examples=examples,
            num_rewrites=1,
            seed=self.context.settings.seed,
        )
        (rewrite, *_) = await self.context.components.rewriter.rewrite(request, models=self.session.models)
        return rewrite


def _advise(error: ReplyError, role: Role, *, settings: Settings, rung: str) -> str:
    """Return what to do about a reply that cannot be used."""
    limit = settings.role(role).max_tokens
    if error.kind == "truncated":
        return f"Allow longer replies: --set {role}.max_tokens={2 * limit}{_bound(role, settings)}."
    server = "" if rung == "json_schema" else ", or a server that enforces JSON schemas"
    return {
        "unparsable": f"It does not give what is asked for: this role needs a stronger model{server}.",
        "empty": "It says nothing: check its chat template, and that it is no embedding model.",
        "refused": "It declines: give this role another model.",
        "rejected": "The server refuses the request: mend what it names, or give this role another model.",
        "unavailable": "The server fails again and again: see its log, or try later.",
        "overflow": "Serve it with a longer context, or give this role another model.",
        "reward_error": "",
    }[error.kind]


def _advise_haste(role: Role, settings: Settings) -> str:
    """Return what to do about a reply that does not end."""
    limit = settings.role(role).max_tokens
    shorter = f"Give it more time: --set timeout_s={3 * settings.timeout_s:g}"
    return f"{shorter}{_bound(role, settings) or f', or shorter replies: --set {role}.max_tokens={limit // 4}'}."


def _bound(role: Role, settings: Settings) -> str:
    """Return how to keep a small model from rambling where the server enforces JSON schemas; empty where it is."""
    missing = [f"--set {name}={bound}" for name, bound in _BOUNDS[role].items() if getattr(settings, name) is None]
    return f", or bound what it writes: {' '.join(missing)}" if missing else ""
