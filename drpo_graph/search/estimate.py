"""What a run will need, before it starts and while it runs: calls by counting, tokens from lengths, money, time.

What is expected takes every reply as usable; equal prompts make it less.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from drpo_graph.prompts.library import Message, PromptLibrary
from drpo_graph.records import ROLES, ICLExample, MetricSelection, Query, Record, Role, Usage
from drpo_graph.search.levels import new_query_indices
from drpo_graph.search.workload import Workload, add_workloads, count_calls, plan_levels, plan_validation, repeat_all
from drpo_graph.settings.limits import CAPS, Cap, Limits, flag_of, tell_amount
from drpo_graph.settings.prices import PriceBook, to_dollars
from drpo_graph.settings.reasoning_models import is_reasoning
from drpo_graph.settings.settings import Settings

BYTES_PER_TOKEN = 4
"""Of English text; in the worst case half as many."""
REPLY_TOKENS: Mapping[Role, int] = {"base": 350, "metrics": 150, "critic": 250, "optimizer": 500}
"""Typical replies, per sample."""
REASONING_TOKENS = 500
"""What a model that reasons is taken to think with before each sample; it is part of the tokens out."""
REWRITE_TOKENS = 350
"""A typical rewritten prompt."""
TOKENS_PER_S = 50
CALL_OVERHEAD_S = 1.0
"""What a call takes, beside its reply at :data:`TOKENS_PER_S`."""

_NUM_METRICS = 4
_FENCE_TOKENS = 25


class Measure(NamedTuple):
    """What one planned call of a role comes to."""

    calls: float = 1.0
    """More than one where replies are asked for again, less where candidates share a call."""
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cached_tokens: float = 0.0


class RoleEstimate(Record):
    """What one role will use."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    """``None`` where the model has no price. No prompt token is taken to be cached."""


class Estimate(Record):
    """What a run will use."""

    by_role: dict[Role, RoleEstimate]
    seconds: float

    @property
    def calls(self) -> int:
        """Of all roles."""
        return sum(one.calls for one in self.by_role.values())

    @property
    def tokens(self) -> int:
        """Of all roles, in and out."""
        return sum(one.prompt_tokens + one.completion_tokens for one in self.by_role.values())

    @property
    def cost_usd(self) -> float | None:
        """Of all roles; ``None`` where a model has no price."""
        costs = [one.cost_usd for one in self.by_role.values() if one.calls]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def amount_of(self, cap: Cap) -> float | None:
        """Return what a cap bounds, in its own unit."""
        return {
            "max_calls": self.calls,
            "max_tokens": self.tokens,
            "max_cost": self.cost_usd,
            "max_time": self.seconds,
        }[cap]


class Dataset(NamedTuple):
    """The queries of a run."""

    training: Sequence[Query]
    """In the run's order."""
    validation: Sequence[Query] = ()
    known_texts: Collection[str] = ()
    """Texts of queries whose metrics stand in a cache."""
    examples: Sequence[ICLExample] = ()
    """ICL examples that responses may be sampled with."""


def estimate_run(settings: Settings, prompts: PromptLibrary, data: Dataset, *, is_worst: bool) -> Estimate:
    """Return what a run will use."""
    levels = plan_levels(
        settings,
        num_queries=len(data.training),
        last=settings.num_levels + (settings.max_depth_increase if is_worst else 0),
    )
    if is_worst:
        levels = repeat_all(levels, settings, num_queries=len(data.training))
    elif data.known_texts:
        levels = [_without_known(level, number, settings, data) for number, level in enumerate(levels)]
    if data.validation:
        levels.append(plan_validation(settings, num_validation=len(data.validation)))
    per_call = {role: measure_call(role, settings, prompts, data, is_worst=is_worst) for role in ROLES}
    return add_up(levels, per_call, settings, is_worst=is_worst)


def estimate_remaining(
    levels: Sequence[Workload],
    settings: Settings,
    *,
    done: Sequence[Workload],
    used: Mapping[str, Usage],
    prompts: PromptLibrary,
) -> Estimate:
    """Return what the levels that are left will use, corrected by what the calls of those done have been so far."""
    planned = count_calls(add_workloads(done), settings, is_worst=False)
    per_call: dict[Role, Measure] = {}
    for role in ROLES:
        usage, num_planned = used.get(role, Usage()), planned[role]
        if num_planned:
            per_call[role] = Measure(
                usage.calls / num_planned,
                usage.prompt_tokens / num_planned,
                usage.completion_tokens / num_planned,
                usage.cached_tokens / num_planned,
            )
        else:
            per_call[role] = measure_call(role, settings, prompts, Dataset(()), is_worst=False)
    return add_up(levels, per_call, settings, is_worst=False)


def find_shortage(limits: Limits, needed: Mapping[Cap, float | None]) -> str | None:
    """Return a line on the caps that a run is going to pass, or ``None`` when they are large enough for its need."""
    short = []
    for cap in CAPS:
        limit, need = getattr(limits, cap), needed.get(cap)
        if limit is not None and need is not None and need > limit:
            short.append(f"about {tell_amount(cap, need)}, and {flag_of(cap)} is {tell_amount(cap, limit)}")
    return f"this run will need {'; '.join(short)}" if short else None


def measure_call(role: Role, settings: Settings, prompts: PromptLibrary, data: Dataset, *, is_worst: bool) -> Measure:
    """Return what a usual call of a role uses, or the largest first one."""
    max_tokens = settings.role(role).max_tokens
    thought = REASONING_TOKENS if is_reasoning(settings.role(role)) else 0
    reply = max_tokens if is_worst else min(REPLY_TOKENS[role] + thought, max_tokens)
    # In the worst case each sample is a call.
    samples = settings.num_proposed if role == "optimizer" and not is_worst else 1
    prompt = _measure_prompt(role, settings, prompts, data, is_worst=is_worst)
    return Measure(1.0, prompt, reply * samples)


def measure_answer(role: Role, settings: Settings, *, is_worst: bool) -> int:
    """Return the tokens of a role's reply where it is shown to another role: without what was thought before it."""
    return _Texts(settings, is_worst=is_worst).reply(role, REPLY_TOKENS[role])


def tell_reasoning(settings: Settings, estimate: Estimate) -> str | None:
    """Return what an estimate assumes of models that reason, or ``None`` where none of those asked is known to."""
    roles = [role for role in ROLES if estimate.by_role[role].calls and is_reasoning(settings.role(role))]
    if not roles:
        return None
    return (
        f"Models that reason: {', '.join(sorted({settings.role(role).model for role in roles}))}. Of their tokens out "
        f"{REASONING_TOKENS} for each reply are assumed to be reasoning, which is billed as output; it may be several "
        "times that, within max_tokens."
    )


def _measure_prompt(role: Role, settings: Settings, prompts: PromptLibrary, data: Dataset, *, is_worst: bool) -> int:
    queries = [*data.training, *data.validation] or [Query(id="", text="")]
    query = _choose_query(queries, is_worst=is_worst)
    texts = _Texts(settings, is_worst=is_worst)
    answer, prompt = texts.reply("base", REPLY_TOKENS["base"]), texts.reply("optimizer", REWRITE_TOKENS)
    prompt = max(prompt, texts.count(settings.initial_prompt))
    if role == "base":
        shown = texts.count_examples(data.examples, k=settings.k)
        filled = sum(map(texts.count, {**settings.placeholder_values, **query.values}.values()))
        return prompt + filled + texts.count(query.transcript) + _FENCE_TOKENS + shown
    if role == "metrics":
        return texts.count_all(prompts.render_select_metrics(query))
    by_length = sorted(prompts.metrics, key=lambda metric: -len(metric.definition))
    num_metrics = settings.max_metrics if is_worst else min(_NUM_METRICS, settings.max_metrics)
    if role == "critic":
        selection = MetricSelection(metrics=tuple(by_length[:num_metrics]))
        rendered = texts.count_all(prompts.render_critique(query=query, response="", selection=selection))
        return rendered + answer + texts.reply("metrics", REPLY_TOKENS["metrics"])
    fixed = texts.count_all(prompts.render_rewrite(current_prompt="", former_prompts=[], examples=[]))
    num_former = settings.history_window if is_worst else min(settings.num_levels // 2 + 1, settings.history_window)
    example = texts.count(query.transcript) + answer + texts.reply("critic", REPLY_TOKENS["critic"]) + 3 * _FENCE_TOKENS
    # At least one critique is shown, however long.
    shown = max(
        example, min(settings.queries_per_level * example, settings.max_critique_chars // texts.bytes_per_token)
    )
    return fixed + (num_former + 1) * (prompt + _FENCE_TOKENS) + shown


class _Texts:
    """Counts tokens: of texts that are known, and of those that are still to be written."""

    def __init__(self, settings: Settings, *, is_worst: bool) -> None:
        self.bytes_per_token = BYTES_PER_TOKEN // 2 if is_worst else BYTES_PER_TOKEN
        self._settings = settings
        self._is_worst = is_worst

    def count(self, text: str) -> int:
        return math.ceil(len(text.encode("utf-8", "replace")) / self.bytes_per_token)

    def count_all(self, messages: Sequence[Message]) -> int:
        return sum(self.count(one["content"]) for one in messages)

    def count_examples(self, examples: Sequence[ICLExample], *, k: int) -> int:
        """Return the tokens of as many as are shown: of the longest, or of the mean length."""
        sizes = sorted((self.count(one.query) + self.count(one.response) for one in examples), reverse=True)
        num_shown = min(k, len(sizes))
        return sum(sizes[:num_shown]) if self._is_worst else num_shown * sum(sizes) // max(1, len(sizes))

    def reply(self, role: Role, usual: int) -> int:
        limit = self._settings.role(role).max_tokens
        return limit if self._is_worst else min(usual, limit)


def _choose_query(queries: Sequence[Query], *, is_worst: bool) -> Query:
    """Return the longest query, or one of about the mean length."""
    if is_worst:
        return max(queries, key=lambda query: len(query.transcript))
    mean_length = sum(len(query.transcript) for query in queries) / len(queries)
    return min(queries, key=lambda query: abs(len(query.transcript) - mean_length))


def _without_known(work: Workload, level: int, settings: Settings, data: Dataset) -> Workload:
    new = new_query_indices(level, settings=settings, num_queries=len(data.training))
    return work._replace(selections=sum(data.training[index].text not in data.known_texts for index in new))


def add_up(
    levels: Sequence[Workload], per_call: Mapping[Role, Measure], settings: Settings, *, is_worst: bool
) -> Estimate:
    """Return what workloads use that come one after the other; a role that is not asked has no calls per call."""
    book = PriceBook(settings.prices)
    seconds = sum(_time_of(level, per_call, settings, is_worst=is_worst) for level in levels)
    by_role: dict[Role, RoleEstimate] = {}
    for role, planned in count_calls(add_workloads(levels), settings, is_worst=is_worst).items():
        each = per_call[role]
        # A reply that was cut off is asked for again with twice the tokens, and a repair is shown the reply.
        factor = 2 if is_worst and not settings.is_compat else 1
        shown = settings.role(role).max_tokens if factor > 1 and role != "base" else 0
        usage = Usage(
            calls=math.ceil(planned * each.calls),
            prompt_tokens=math.ceil(planned * (each.prompt_tokens + shown)),
            completion_tokens=math.ceil(planned * each.completion_tokens * factor),
            cached_tokens=math.floor(planned * each.cached_tokens),
        )
        cost = book.cost_of(settings.role(role).model, usage)
        by_role[role] = RoleEstimate(
            calls=usage.calls,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=None if cost is None else to_dollars(cost),
        )
    return Estimate(by_role=by_role, seconds=round(seconds, 1))


def _time_of(work: Workload, per_call: Mapping[Role, Measure], settings: Settings, *, is_worst: bool) -> float:
    """Return a level's seconds: its longest chain of calls, or as long as its calls take at the limits."""
    samples = {role: settings.num_proposed if role == "optimizer" and not is_worst else 1 for role in ROLES}
    # The samples of one request are written at the same time.
    asked = [role for role in ROLES if per_call[role].calls]
    each = dict.fromkeys(ROLES, 0.0) | {
        role: CALL_OVERHEAD_S + per_call[role].completion_tokens / samples[role] / TOKENS_PER_S for role in asked
    }
    planned = count_calls(work, settings, is_worst=is_worst)
    calls = {role: planned[role] if role in asked else 0 for role in ROLES}
    judge = each["critic"] if settings.has_judge else 0.0
    tries = max(calls["critic"], calls["base"]) / work.rollouts if work.rollouts else 1
    chain = tries * ((each["optimizer"] if work.rewrites else 0.0) + each["base"] + judge)
    busy = sum(calls[role] * each[role] for role in ROLES) / settings.max_concurrency
    paced = sum(calls.values()) / settings.requests_per_second if settings.requests_per_second else 0.0
    return max(chain, busy, paced)
