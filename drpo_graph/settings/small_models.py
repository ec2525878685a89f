"""Bounds on what the embedded model writes, unless others are given: small models ramble, and each token takes time."""

from collections.abc import Mapping

from drpo_graph.records import ROLES

_LOCAL = "local:"
_MAX_TOKENS = 1024
_MAX_RATIONALE_CHARS = 160
_MAX_PROMPT_CHARS = 480


def bound_embedded(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested settings with bounds for each role that the embedded model has; what is given stays.

    The published search has none of these bounds, and keeps to that.
    """
    bounded = dict(values)
    local = [role for role in ROLES if _is_local(values.get(role))]
    if values.get("compat") == "drpo":
        return bounded
    for role in local:
        table = values[role]
        bounded[role] = {"max_tokens": _MAX_TOKENS, **table} if isinstance(table, Mapping) else table
    if set(local) & {"metrics", "critic", "optimizer"}:
        bounded.setdefault("max_rationale_chars", _MAX_RATIONALE_CHARS)
    if "optimizer" in local:
        bounded.setdefault("max_prompt_chars", _MAX_PROMPT_CHARS)
    return bounded


def _is_local(table: object) -> bool:
    return isinstance(table, Mapping) and str(table.get("model", "")).startswith(_LOCAL)
