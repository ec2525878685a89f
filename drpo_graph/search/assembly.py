"""From settings and parts to a run's live objects."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypedDict, Unpack, cast

from langgraph.store.base import BaseStore
from pydantic import JsonValue

from drpo_graph.events.emitter import EventSink
from drpo_graph.models.clients import build_clients
from drpo_graph.models.given_models import GivenModel, check_models, describe_bound
from drpo_graph.parts.defaults import (
    REWARD_METRIC,
    CachedMetrics,
    FixedMetrics,
    LLMCritic,
    LLMMetricSelector,
    LLMRewriter,
    RewardCritic,
    load_metrics_cache,
)
from drpo_graph.parts.given_parts import as_part
from drpo_graph.parts.identity import name_of
from drpo_graph.parts.part_identity import describe_part
from drpo_graph.parts.protocols import (
    BeamPolicy,
    Components,
    Critic,
    ExampleRetriever,
    MetricSelector,
    RewardFunction,
    Rewriter,
)
from drpo_graph.parts.responders import PromptResponder
from drpo_graph.parts.rewards import CriticPart, MixedCritic, MixedReward, NamedReward, choose_critic, replaces_critic
from drpo_graph.parts.screens import RewriteScreen
from drpo_graph.prompts.library import PromptLibrary, load_prompts
from drpo_graph.records import Role
from drpo_graph.retrieval.examples import digest_examples
from drpo_graph.retrieval.retriever import open_retriever
from drpo_graph.safety.text_files import read_bytes
from drpo_graph.search.beam import prune_beam
from drpo_graph.search.session import RunContext
from drpo_graph.settings.layers import check_no_key
from drpo_graph.settings.limits import check_prices
from drpo_graph.settings.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Replacements for models and components, by role and by protocol."""

    models: Mapping[Role, GivenModel] | None = None
    selector: MetricSelector | None = None
    critic: CriticPart | None = None
    rewriter: Rewriter | None = None
    beam_policy: BeamPolicy | None = None
    example_retriever: ExampleRetriever | None = None
    responder: PromptResponder | None = None
    """An app in the base model's place."""
    screen: RewriteScreen | None = None
    """Chooses among rewrites; in use where the settings' ``n_proposed`` is more than ``n_actions``."""

    identities: Mapping[str, JsonValue] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What tells them from others, by name."""

    def __post_init__(self) -> None:
        """Take functions for the parts that they are.

        Raises:
            SettingsError: a part has no form that it can be called in, or there is no such role or model.
        """
        check_models(self.models)
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("models", "identities")}
        parts = {name: as_part(name, part) for name, part in given.items() if part is not None}
        for name, part in parts.items():
            object.__setattr__(self, name, part)
        # As they are given: what they note while they are used is none of it.
        identities = {name: describe_part(part) for name, part in parts.items()}
        bound = {role: describe_bound(role, model) for role, model in (self.models or {}).items() if model is not None}
        if told := {role: one for role, one in bound.items() if one is not None}:
            identities["models"] = describe_part(told)
        object.__setattr__(self, "identities", identities)


class GivenParts(TypedDict, total=False):
    """The same as keywords; :func:`take_parts` makes the record of them."""

    models: Mapping[Role, GivenModel] | None
    selector: MetricSelector | None
    critic: CriticPart | None
    rewriter: Rewriter | None
    beam_policy: BeamPolicy | None
    example_retriever: ExampleRetriever | None
    responder: PromptResponder | None
    screen: RewriteScreen | None


def take_parts(given: GivenParts, function: str) -> Parts:
    """Return the parts that a function was given as keywords; of another keyword, ``TypeError`` tells in its name."""
    names = [one.name for one in fields(Parts) if one.init]
    if unknown := [name for name in given if name not in names]:
        told = f"{function}() got an unexpected keyword argument {unknown[0]!r}"
        raise TypeError(f"{told}; the parts are {', '.join(names)}")
    return Parts(**given)


def build_components(settings: Settings, prompts: PromptLibrary, parts: Parts) -> Components:
    """Return the given parts, and our defaults in place of the missing ones.

    With a reward function for a critic there is nothing to select metrics for, so by default none are. A given
    retriever is used whether the settings ask for examples or not.

    Raises:
        UsageError: the metrics cache, the ICL examples or the embeddings of the settings cannot be used.
    """
    critic, example_retriever = parts.critic, parts.example_retriever
    default_selector: MetricSelector = (
        FixedMetrics((REWARD_METRIC,)) if replaces_critic(critic) else LLMMetricSelector(prompts, settings)
    )
    default_critic: Critic = LLMCritic(prompts, settings)
    if isinstance(critic, NamedReward):
        critic = MixedReward(critic, weight=1)
    if isinstance(critic, MixedReward):
        critic = MixedCritic(critic, default_critic if critic.has_critic else None, settings.timeout_s)
    data_digest = ""
    if settings.metrics_cache is not None:
        cached = load_metrics_cache(settings.metrics_cache, known=prompts.metrics)
        default_selector = CachedMetrics(cached, default_selector)
        data_digest = hashlib.sha256(read_bytes(settings.metrics_cache)).hexdigest()
    if example_retriever is None and (found := open_retriever(settings)) is not None:
        example_retriever = found
        data_digest += digest_examples(found.examples)
    # Where there is nothing to choose from it does nothing, and the run is the same without it.
    screen = parts.screen if settings.is_screened else None
    for part in (critic, parts.responder, screen):
        if isinstance(identity := getattr(part, "identity", None), str):
            data_digest = hashlib.sha256(f"{data_digest}\0{name_of(part)}\0{identity}".encode()).hexdigest()
    return Components(
        selector=parts.selector or default_selector,
        critic=default_critic if critic is None else as_critic(critic, timeout_s=settings.timeout_s),
        rewriter=parts.rewriter or LLMRewriter(prompts, settings),
        beam_policy=parts.beam_policy or prune_beam,
        example_retriever=example_retriever,
        responder=parts.responder,
        screen=screen,
        data_digest=data_digest,
        identities={name: one for name, one in parts.identities.items() if name != "screen" or screen is not None},
    )


def as_critic(critic: Critic | RewardFunction, *, timeout_s: float) -> Critic:
    """Return a critic as it is, a reward function in a critic's place; that one is waited for so long."""
    return cast(Critic, critic) if hasattr(critic, "critique") else RewardCritic(critic, timeout_s)


def assemble(
    settings: Settings,
    parts: Parts,
    *,
    store: BaseStore | None = None,
    sinks: tuple[EventSink, ...] = (),
    accepts_changes: bool = False,
    optional_roles: frozenset[Role] = frozenset(),
) -> RunContext:
    """Return the live objects of a run; ``optional_roles`` need no model.

    Raises:
        ModelSpecError: a role has no model, or its string cannot be resolved.
        SettingsError: the settings hold a key.
        TemplateError: the template folder of the settings cannot be used.
        UsageError: money is capped and a model has no price; the ICL examples or their embeddings cannot be used.
    """
    check_no_key(settings)
    prompts = load_prompts(settings.templates, has_placeholders=settings.placeholders != "none")
    if (critic := choose_critic(settings, parts.critic)) is not parts.critic:
        parts = replace(parts, critic=critic)
    components = build_components(settings, prompts, parts)
    clients = build_clients(settings, parts.models, optional=optional_roles | _roles_replaced_by(parts))
    model_by_role: dict[str, str] = {role: client.settings.model for role, client in clients.items()}
    check_prices(settings, {**model_by_role, "embeddings": settings.called_embeddings})
    return RunContext(
        settings=settings,
        prompts=prompts,
        clients=clients,
        components=components,
        store=store,
        sinks=sinks,
        accepts_changes=accepts_changes,
    )


def build_context(
    settings: Settings,
    *,
    store: BaseStore | None = None,
    sinks: tuple[EventSink, ...] = (),
    accepts_changes: bool = False,
    optional_roles: frozenset[Role] = frozenset(),
    **parts: Unpack[GivenParts],
) -> RunContext:
    """Return the live objects of a run: :func:`assemble` with parts by their names.

    These are ``models``, ``selector``, ``critic``, ``rewriter``, ``beam_policy``, ``example_retriever``,
    ``responder`` and ``screen``, as in :class:`Parts`.
    """
    return assemble(
        settings,
        take_parts(parts, "build_context"),
        store=store,
        sinks=sinks,
        accepts_changes=accepts_changes,
        optional_roles=optional_roles,
    )


def _roles_replaced_by(parts: Parts) -> frozenset[Role]:
    """Return the roles that need no model, because a replacement does their work, with or without one."""
    critic = parts.critic
    by_role: dict[Role, bool] = {
        "base": parts.responder is not None,
        "metrics": parts.selector is not None or replaces_critic(critic),
        "critic": critic is not None and not (isinstance(critic, MixedReward) and critic.has_critic),
        "optimizer": parts.rewriter is not None,
    }
    return frozenset(role for role, is_replaced in by_role.items() if is_replaced)
