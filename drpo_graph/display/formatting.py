"""Numbers as people read them in a display: counts, durations, rewards."""

from collections.abc import Collection, Mapping

from drpo_graph.events.schema import ICLExampleFinished, Remaining
from drpo_graph.records import ICLOutcome, Usage, mean
from drpo_graph.safety.terminal import inert
from drpo_graph.settings.limits import tell_money

NONE = "-"
"""What stands for a number that is not known."""


def format_count(count: int) -> str:
    """Return a count in at most four characters up to a billion: ``999``, ``1.2k``, ``81k``, ``3.4M``."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.1f}G"


def format_duration(seconds: float) -> str:
    """Return a duration to the second below an hour, else to the minute: ``8s``, ``1m12s``, ``2h05m``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_estimate(seconds: float | None) -> str:
    """Return a duration no finer than an estimate deserves: ``40s``, ``2m``, ``1h05m``; ``-`` when unknown."""
    if seconds is None:
        return NONE
    if seconds < 55:
        return f"{max(round(seconds / 5), 1) * 5}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def format_remaining(remaining: Remaining | None) -> str:
    """Return about what is left to do: ``120 calls, 81k tokens, $0.30``; ``-`` when unknown."""
    if remaining is None:
        return NONE
    money = f", {tell_money(remaining.cost_usd)}" if remaining.cost_usd else ""
    return f"{format_count(remaining.calls)} calls, {format_count(remaining.tokens)} tokens{money}"


def format_reward(reward: float | None) -> str:
    """Return a reward with two decimals, ``-`` when unscored."""
    return NONE if reward is None else f"{reward:.2f}"


def format_gain(examples: Collection[ICLExampleFinished | ICLOutcome]) -> str:
    """Return the examples' mean rewards before and after: ``2.50 -> 3.50``."""
    before = format_reward(mean([one.initial_reward for one in examples]))
    return f"{before} -> {format_reward(mean([one.reward for one in examples]))}"


def format_usage(usage: Usage) -> tuple[str, str, str, str]:
    """Return the calls, the tokens in and out, and the share of those in that came from a prefix cache."""
    prompt_tokens, cached_tokens = usage.prompt_tokens, usage.cached_tokens
    cached = f"{100 * cached_tokens / prompt_tokens:.0f}%" if cached_tokens and prompt_tokens else NONE
    return str(usage.calls), format_count(prompt_tokens), format_count(usage.completion_tokens), cached


def format_kinds(count_by_kind: Mapping[str, int]) -> str:
    """Return counts by kind, largest first: ``http_429 4, timeout 1``."""
    ordered = sorted(count_by_kind.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{inert(kind, max_chars=32)} {count}" for kind, count in ordered)


def format_models(models: Mapping[str, str]) -> str:
    """Return the models, roles of one model together: ``base A, metrics+critic B``; just ``A`` if it is alone."""
    roles_by_model: dict[str, list[str]] = {}
    for role, model in models.items():
        roles_by_model.setdefault(model, []).append(role)
    if len(roles_by_model) == 1:
        return inert(next(iter(roles_by_model)), max_chars=80)
    shown = (f"{'+'.join(roles)} {model}" for model, roles in roles_by_model.items())
    return ", ".join(inert(part, max_chars=100) for part in shown)
