"""Our defaults behind the protocols: selector, critic and rewriter that ask the roles' models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from drpo_graph.calls.roles import Models
from drpo_graph.errors import ReplyError, SettingsError
from drpo_graph.models.request import ReplySchema
from drpo_graph.parts.parsing import parse_critique, parse_critique_published, parse_metric_selection, parse_rewrite
from drpo_graph.parts.protocols import MetricSelector, RewardFunction, RewriteRequest
from drpo_graph.parts.rewards import NamedReward, ask_reward, check_reward
from drpo_graph.parts.soft_scores import soften_critique
from drpo_graph.prompts.library import PromptLibrary
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Critique, Metric, MetricScore, MetricSelection, Query, Rollout
from drpo_graph.safety.text_files import read_text
from drpo_graph.settings.settings import Settings

_MAX_NAME_CHARS = 40

REWARD_METRIC = Metric(name="Reward", definition="The score of a reward function.")


@dataclass(frozen=True, slots=True)
class LLMMetricSelector:
    """Asks the ``metrics`` model which metrics matter (arXiv 2411.08733, dynamic rewarding)."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.LLMMetricSelector"

    prompts: PromptLibrary
    settings: Settings

    async def select_metrics(self, query: Query, *, models: Models) -> MetricSelection:
        """Return the metrics, known or newly defined."""
        max_metrics = self.settings.max_metrics
        samples = await models.metrics.ask(
            self.prompts.render_select_metrics(query),
            parse=partial(parse_metric_selection, known=self.prompts.metrics, max_metrics=max_metrics),
            schema=_selection_schema(self.prompts.metrics, self.settings),
        )
        return samples[0].require(f"metrics for query {query.id!r}")


@dataclass(frozen=True, slots=True)
class CachedMetrics:
    """Answers from metrics selected before, and asks the selector behind it for the rest."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.CachedMetrics"

    selection_by_query: Mapping[str, MetricSelection]
    selector: MetricSelector

    async def select_metrics(self, query: Query, *, models: Models) -> MetricSelection:
        """Return the cached metrics of a query's text, or ask."""
        cached = self.selection_by_query.get(query.text)
        return cached if cached is not None else await self.selector.select_metrics(query, models=models)


def load_metrics_cache(path: Path, *, known: Sequence[Metric]) -> dict[str, MetricSelection]:
    """Return the selections in a metrics cache of the published code, by query text.

    Raises:
        SettingsError: the file cannot be read, or an entry names no metric.
    """
    try:
        entries = json.loads(read_text(path))
        return {text: parse_metric_selection(json.dumps(entry), known=known) for text, entry in entries.items()}
    except (OSError, ValueError, AttributeError, ReplyError) as error:
        raise SettingsError(f"metrics_cache: {path}: expected the published JSON form, got: {error}.") from error


@dataclass(frozen=True, slots=True)
class LLMCritic:
    """Asks the ``critic`` model for a score and a rationale on each metric."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.LLMCritic"

    prompts: PromptLibrary
    settings: Settings

    async def critique(self, query: Query, response: str, *, selection: MetricSelection, models: Models) -> Critique:
        """Return one score per selected metric."""
        strict = partial(parse_critique, metrics=selection.metrics)
        samples = await models.critic.ask(
            self.prompts.render_critique(query=query, response=response, selection=selection),
            parse=parse_critique_published if self.settings.is_compat else strict,
            soften=soften_critique if self.settings.soft_scores else None,
            schema=_critique_schema(selection.metrics, self.settings.max_rationale_chars),
        )
        return samples[0].require(f"critique on query {query.id!r}")


@dataclass(frozen=True, slots=True)
class RewardCritic:
    """Puts a reward function in the critic's place: its score is the one metric, its feedback the rationale."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.RewardCritic"

    reward: RewardFunction
    timeout_s: float
    """Longest wait for it."""

    async def critique(self, query: Query, response: str, *, selection: MetricSelection, models: Models) -> Critique:
        """Return the reward as a critique."""
        given = check_reward(await ask_reward(NamedReward(self.reward), query, response, timeout_s=self.timeout_s))
        score = MetricScore(metric=REWARD_METRIC.name, score=given.score, rationale=given.feedback)
        return Critique(scores=(score,))


@dataclass(frozen=True, slots=True)
class FixedMetrics:
    """Selects the same metrics for every query, without a call."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.FixedMetrics"

    metrics: tuple[Metric, ...]

    async def select_metrics(self, query: Query, *, models: Models) -> MetricSelection:
        """Return the fixed metrics."""
        return MetricSelection(metrics=self.metrics)


@dataclass(frozen=True, slots=True)
class LLMRewriter:
    """Asks the ``optimizer`` model for rewrites: one request with several samples."""

    STORED_NAME: ClassVar[str] = "drpo_graph.components.LLMRewriter"

    prompts: PromptLibrary
    settings: Settings

    async def rewrite(self, request: RewriteRequest, *, models: Models) -> Sequence[str]:
        """Return the usable samples, at least one."""
        guard = request.guard
        if not self.settings.is_compat:
            guard = replace(guard, task_texts=self.prompts.rewrite_task)
        samples = await models.optimizer.ask(
            self.prompts.render_rewrite(
                current_prompt=request.prompt,
                former_prompts=request.former_prompts,
                examples=choose_examples(request.examples, settings=self.settings),
                rejected=request.rejected,
                placeholders=guard.placeholders,
            ),
            parse=lambda text: guard.check(parse_rewrite(text, is_compat=self.settings.is_compat)),
            schema=_rewrite_schema(self.settings),
            num_samples=request.num_rewrites,
            seed=request.seed,
        )
        rewrites = [sample.value for sample in samples if sample.value is not None]
        if not rewrites:
            samples[0].require(f"rewrite of candidate {request.candidate_id!r}")
        return rewrites


def choose_examples(examples: Sequence[tuple[Query, Rollout]], *, settings: Settings) -> list[tuple[Query, Rollout]]:
    """Return the critiques the optimizer is shown: worst first, within the limits on number and length."""
    worst_first = sorted(examples, key=lambda example: example[1].reward or 0.0)
    chosen: list[tuple[Query, Rollout]] = []
    num_chars = 0
    for query, rollout in worst_first[: settings.max_critiques_shown]:
        remarks = rollout.critique.scores if rollout.critique else ()
        num_chars += len(query.transcript) + len(rollout.response or "") + sum(len(one.rationale) for one in remarks)
        if chosen and num_chars > settings.max_critique_chars:
            break
        chosen.append((query, rollout))
    return chosen


def _object_schema(properties: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _text_schema(max_chars: int | None) -> dict[str, JsonValue]:
    return {"type": "string"} if max_chars is None else {"type": "string", "maxLength": max_chars}


def _selection_schema(known: Sequence[Metric], settings: Settings) -> ReplySchema:
    bound = settings.max_rationale_chars
    name: JsonValue = {"type": "string", "enum": [metric.name for metric in known]}
    new_name = _text_schema(None if bound is None else _MAX_NAME_CHARS)
    new_metric = _object_schema({"name": new_name, "definition": _text_schema(bound)})
    properties: dict[str, JsonValue] = {
        "reasoning": _text_schema(bound),
        "metrics": {"type": "array", "items": name, "minItems": 1, "maxItems": settings.max_metrics},
        "new_metrics": {"type": "array", "items": new_metric, "maxItems": 1},
    }
    return ReplySchema("metric_selection", _object_schema(properties))


def _critique_schema(metrics: Sequence[Metric], max_rationale_chars: int | None) -> ReplySchema:
    score: JsonValue = {"type": "integer", "enum": list(range(MIN_SCORE, MAX_SCORE + 1))}
    entry = _object_schema({"rationale": _text_schema(max_rationale_chars), "score": score})
    return ReplySchema("critique", _object_schema({metric.name: entry for metric in metrics}))


def _rewrite_schema(settings: Settings) -> ReplySchema:
    analysis, prompt = _text_schema(settings.max_rationale_chars), _text_schema(settings.max_prompt_chars)
    return ReplySchema("rewrite", _object_schema({"analysis": analysis, "new_system_prompt": prompt}))
