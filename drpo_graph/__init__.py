"""Tuning-free alignment: optimise system prompts with DRPO as a durable, streaming LangGraph.

``optimize()`` and ``resume()`` run a search, ``build_graph()`` returns it as a graph for an app of your own,
``Settings`` says what it does. Names are loaded on first use: importing the package is quick and pulls in no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drpo_graph.calls.roles import Models
    from drpo_graph.data.datasets import load_bundled_queries, load_queries
    from drpo_graph.errors import DRPOError, ReplyError
    from drpo_graph.events.schema import Event, parse_event
    from drpo_graph.graph import RECURSION_LIMIT, ContextOverrides, build_context, build_graph
    from drpo_graph.parts.protocols import (
        BeamPolicy,
        Critic,
        ExampleRetriever,
        MetricSelector,
        Reward,
        RewardFunction,
        Rewriter,
        RewriteRequest,
    )
    from drpo_graph.parts.responders import Responder
    from drpo_graph.parts.rewards import MixedReward, NamedReward
    from drpo_graph.records import (
        Candidate,
        Critique,
        ICLExample,
        Metric,
        MetricScore,
        MetricSelection,
        Query,
        RejectedRewrite,
        Rollout,
        RunResult,
        Validation,
        WarmStart,
    )
    from drpo_graph.runs.app_prompts import PromptsResult, optimize_prompts
    from drpo_graph.runs.decisions import decide, pending_review
    from drpo_graph.runs.forks import fork
    from drpo_graph.runs.runner import Parts, RunOptions, optimize, resume
    from drpo_graph.runs.warm_start import load_warm_start
    from drpo_graph.search.reviews import ReviewDecision, ReviewRequest
    from drpo_graph.settings.settings import RoleSettings, Settings, build_settings

__version__ = "0.1.0"

_MODULE_BY_NAME = {
    "RECURSION_LIMIT": "graph",
    "BeamPolicy": "parts.protocols",
    "Candidate": "records",
    "ContextOverrides": "graph",
    "Critic": "parts.protocols",
    "Critique": "records",
    "DRPOError": "errors",
    "Event": "events.schema",
    "ExampleRetriever": "parts.protocols",
    "ICLExample": "records",
    "Metric": "records",
    "MetricScore": "records",
    "MetricSelection": "records",
    "MetricSelector": "parts.protocols",
    "MixedReward": "parts.rewards",
    "Models": "calls.roles",
    "NamedReward": "parts.rewards",
    "Parts": "runs.runner",
    "PromptsResult": "runs.app_prompts",
    "Query": "records",
    "RejectedRewrite": "records",
    "ReplyError": "errors",
    "Responder": "parts.responders",
    "ReviewDecision": "search.reviews",
    "ReviewRequest": "search.reviews",
    "Reward": "parts.protocols",
    "RewardFunction": "parts.protocols",
    "RewriteRequest": "parts.protocols",
    "Rewriter": "parts.protocols",
    "RoleSettings": "settings.settings",
    "Rollout": "records",
    "RunOptions": "runs.runner",
    "RunResult": "records",
    "Settings": "settings.settings",
    "Validation": "records",
    "WarmStart": "records",
    "build_context": "graph",
    "build_graph": "graph",
    "build_settings": "settings.settings",
    "decide": "runs.decisions",
    "fork": "runs.forks",
    "load_bundled_queries": "data.datasets",
    "load_queries": "data.datasets",
    "load_warm_start": "runs.warm_start",
    "optimize": "runs.runner",
    "optimize_prompts": "runs.app_prompts",
    "parse_event": "events.schema",
    "pending_review": "runs.decisions",
    "resume": "runs.runner",
}

__all__ = [
    "RECURSION_LIMIT",
    "BeamPolicy",
    "Candidate",
    "ContextOverrides",
    "Critic",
    "Critique",
    "DRPOError",
    "Event",
    "ExampleRetriever",
    "ICLExample",
    "Metric",
    "MetricScore",
    "MetricSelection",
    "MetricSelector",
    "MixedReward",
    "Models",
    "NamedReward",
    "Parts",
    "PromptsResult",
    "Query",
    "RejectedRewrite",
    "ReplyError",
    "Responder",
    "ReviewDecision",
    "ReviewRequest",
    "Reward",
    "RewardFunction",
    "RewriteRequest",
    "Rewriter",
    "RoleSettings",
    "Rollout",
    "RunOptions",
    "RunResult",
    "Settings",
    "Validation",
    "WarmStart",
    "build_context",
    "build_graph",
    "build_settings",
    "decide",
    "fork",
    "load_bundled_queries",
    "load_queries",
    "load_warm_start",
    "optimize",
    "optimize_prompts",
    "parse_event",
    "pending_review",
    "resume",
]


def __getattr__(name: str) -> object:
    module = _MODULE_BY_NAME.get(name)
    if module is None:
        raise AttributeError(f"module 'drpo_graph' has no attribute {name!r}")
    return getattr(import_module(f"drpo_graph.{module}"), name)
