"""What callers have bound to a chat model: in the place of a role's sampling, or passed with each call."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drpo_graph.models.request import Request
from drpo_graph.models.terms import LIMIT_FIELDS

_FORMATS = frozenset({"tools", "tool_choice", "functions", "function_call", "response_format"})
NEVER_BOUND = _FORMATS | {"n", "logprobs", "top_logprobs", "stream", "messages", "model"}
"""What a run decides for each request: its samples are counted, its replies read, by this."""

_SAMPLING = ("temperature", "top_p", "seed", "reasoning_effort")


def with_bound(request: Request, bound: Mapping[str, Any]) -> Request:
    """Return a request with what is bound in the place of the role's own sampling.

    Its reply may be shorter than the role's, not longer; stops are added.
    """
    changes: dict[str, Any] = {name: bound[name] for name in _SAMPLING if name in bound}
    limits = [bound[name] for name in LIMIT_FIELDS if bound.get(name) is not None]
    if limits:
        changes["max_tokens"] = min(request.max_tokens, *limits)
    if stops := bound.get("stop"):
        changes["stop"] = (*request.stop, *([stops] if isinstance(stops, str) else stops))
    return replace(request, **changes) if changes else request


def other_bound(request: Request, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is bound besides, but for what the server has refused."""
    known = {*_SAMPLING, *LIMIT_FIELDS, "stop", *request.terms.dropped}
    return {name: value for name, value in bound.items() if name not in known}
