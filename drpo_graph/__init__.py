"""Tuning-free alignment: optimise system prompts with DRPO as a durable, streaming LangGraph.

``optimize()`` and ``resume()`` run a search, ``build_graph()`` returns it as a graph for an app of your own,
``Settings`` says what it does. Names are loaded on first use: importing the package is quick and pulls in no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drpo_graph.dataset import load_bundled_queries, load_queries
    from drpo_graph.errors import DRPOError, ReplyError
    from drpo_graph.events import Event, parse_event
    from drpo_graph.forking import fork
    from drpo_graph.graph import RECURSION_LIMIT, ContextOverrides, build_context, build_graph
    from drpo_graph.ladder import Models
    from drpo_graph.many_prompts import PromptsResult, optimize_prompts
    from drpo_graph.protocols import (
        BeamPolicy,
        Critic,
        ExampleRetriever,
        MetricSelector,
        Reward,
        RewardFunction,
        Rewriter,
        RewriteRequest,
    )
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
    from drpo_graph.responders import Responder
    from drpo_graph.reviewing import decide, pending_review
    from drpo_graph.reviews import ReviewDecision, ReviewRequest
    from drpo_graph.rewards import MixedReward, NamedReward
    from drpo_graph.runner import Parts, RunOptions, optimize, resume
    from drpo_graph.settings import RoleSettings, Settings, build_settings
    from drpo_graph.warm_start import load_warm_start

__version__ = "0.1.0"

_MODULE_BY_NAME = {
    "RECURSION_LIMIT": "graph",
    "BeamPolicy": "protocols",
    "Candidate": "records",
    "ContextOverrides": "graph",
    "Critic": "protocols",
    "Critique": "records",
    "DRPOError": "errors",
    "Event": "events",
    "ExampleRetriever": "protocols",
    "ICLExample": "records",
    "Metric": "records",
    "MetricScore": "records",
    "MetricSelection": "records",
    "MetricSelector": "protocols",
    "MixedReward": "rewards",
    "Models": "ladder",
    "NamedReward": "rewards",
    "Parts": "runner",
    "PromptsResult": "many_prompts",
    "Query": "records",
    "RejectedRewrite": "records",
    "ReplyError": "errors",
    "Responder": "responders",
    "ReviewDecision": "reviews",
    "ReviewRequest": "reviews",
    "Reward": "protocols",
    "RewardFunction": "protocols",
    "RewriteRequest": "protocols",
    "Rewriter": "protocols",
    "RoleSettings": "settings",
    "Rollout": "records",
    "RunOptions": "runner",
    "RunResult": "records",
    "Settings": "settings",
    "Validation": "records",
    "WarmStart": "records",
    "build_context": "graph",
    "build_graph": "graph",
    "build_settings": "settings",
    "decide": "reviewing",
    "fork": "forking",
    "load_bundled_queries": "dataset",
    "load_queries": "dataset",
    "load_warm_start": "warm_start",
    "optimize": "runner",
    "optimize_prompts": "many_prompts",
    "parse_event": "events",
    "pending_review": "reviewing",
    "resume": "runner",
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
