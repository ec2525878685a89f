"""What a server says that a request consumed. Numbers that cannot be true are taken for not told."""

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from drpo_graph.records import Usage

_MAX_COUNT = 2**63 - 1
"""The largest number that the databases hold."""


UNTRUE_USAGE = "untrue_usage"
"""In a message's metadata: that the server's report was left out before LangChain read it."""


def read_usage(told: object) -> Usage:
    """Return the usage of a whole request as OpenAI-compatible servers report it; without tokens where it is none."""
    return _make_usage(_counts_in(told))


def is_untrue(told: object) -> bool:
    """Return whether a server's report has a number that cannot be true, so that none of it is used."""
    return any(_read_count(value) is None for value in _counts_in(told).values())


def usage_in(message: BaseMessage) -> Usage:
    """Return the usage as LangChain normalises it; a reply out of LangChain's cache tells its cost alone."""
    return _make_usage(_counts_of(message))


def is_untrue_in(message: BaseMessage) -> bool:
    """Return whether that has a number that cannot be true, or had."""
    return bool(message.response_metadata.get(UNTRUE_USAGE)) or any(
        _read_count(value) is None for value in _counts_of(message).values()
    )


def _counts_in(told: object) -> dict[str, object]:
    if not isinstance(told, Mapping):
        return {}
    return {
        "prompt_tokens": told.get("prompt_tokens"),
        "completion_tokens": told.get("completion_tokens"),
        "cached_tokens": _within(told.get("prompt_tokens_details"), "cached_tokens"),
        "reasoning_tokens": _within(told.get("completion_tokens_details"), "reasoning_tokens"),
    }


def _counts_of(message: BaseMessage) -> dict[str, object]:
    told: Mapping[str, Any] = (message.usage_metadata if isinstance(message, AIMessage) else None) or {}
    return {
        "prompt_tokens": told.get("input_tokens"),
        "completion_tokens": told.get("output_tokens"),
        "cached_tokens": _within(told.get("input_token_details"), "cache_read"),
        "reasoning_tokens": _within(told.get("output_token_details"), "reasoning"),
    }


def _within(details: object, name: str) -> object:
    return details.get(name) if isinstance(details, Mapping) else None


def clean_usage(told: object) -> dict[str, Any] | None:
    """Return a server's report with what :func:`read_usage` reads of it, for LangChain, which trusts it."""
    usage = read_usage(told)
    if not (usage.prompt_tokens or usage.completion_tokens):
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _make_usage(told: Mapping[str, object]) -> Usage:
    counts = {name: _read_count(value) for name, value in told.items()}
    known = {name: count for name, count in counts.items() if count is not None}
    # One number that cannot be true leaves no trust in the others: what is not told, a budget takes for the most.
    return Usage(calls=1, **known) if len(known) == len(counts) else Usage(calls=1)


def _read_count(value: object) -> int | None:
    """Return a count, 0 where there is none, or ``None`` where it can be no count."""
    if value is None:
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        return None
    return int(value)
