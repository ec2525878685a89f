"""The search's rules: rewards along a path, what counts as easy, which candidates stay. Pure functions.

Section 3 of arXiv 2411.08733 and, under ``compat="drpo"``, the published code's behaviour.
"""

import hashlib
import math
import random
from collections.abc import Sequence

from drpo_graph.records import MAX_SCORE, CandidateRef, RolloutRef, mean
from drpo_graph.settings.settings import RewardAggregate, Settings
from drpo_graph.storage.archive import StoredCandidate

_MIN_TEMPERATURE = 1e-6


def hash_prompt(prompt: str) -> str:
    """Return a short identity of a prompt's text: 16 hex digits of its SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def refer_to(stored: StoredCandidate, *, lineage: list[str], parent: CandidateRef | None = None) -> CandidateRef:
    """Return a new candidate as the state knows it, with its path as far as its parent."""
    return {
        "id": stored["id"],
        "parent_id": stored["parent_id"],
        "depth": stored["depth"],
        "origin": stored["origin"],
        "prompt_hash": hash_prompt(stored["prompt"]),
        "lineage": lineage,
        "query_ids": [],
        "reward": None,
        "path_sum": parent["path_sum"] if parent else 0.0,
        "path_count": parent["path_count"] if parent else 0,
        "path_reward": None,
    }


def score_candidate(candidate: CandidateRef, rollouts: Sequence[RolloutRef], *, settings: Settings) -> CandidateRef:
    """Return the candidate with its reward and path reward filled in from its rollouts on the level's queries."""
    reward = mean([rollout["reward"] for rollout in rollouts])
    scored: CandidateRef = {**candidate, "query_ids": [one["query_id"] for one in rollouts], "reward": reward}
    if reward is not None and candidate["depth"] > 0:
        scored["path_sum"] += reward
        scored["path_count"] += 1
    scored["path_reward"] = path_reward(scored, aggregate=aggregate_of(settings))
    return scored


def aggregate_of(settings: Settings) -> RewardAggregate:
    """Return the aggregate in force: ``auto`` is the mean, or the last reward for a beam of one (as published)."""
    if settings.reward_aggregate != "auto":
        return settings.reward_aggregate
    return "last" if settings.beam_size == 1 else "mean"


def path_reward(candidate: CandidateRef, *, aggregate: RewardAggregate) -> float | None:
    """Return the aggregate of the rewards from depth 1 to the candidate; the root has its own reward."""
    if candidate["depth"] == 0 or aggregate == "last":
        return candidate["reward"]
    if candidate["path_count"] == 0:
        return None
    return candidate["path_sum"] / (candidate["path_count"] if aggregate == "mean" else 1)


def is_easy(candidate: CandidateRef, *, settings: Settings, has_failed: bool = False) -> bool:
    """Return whether a candidate is good enough to be kept as it is.

    All metrics at 5, or a reward above the threshold. Under compat also a candidate whose critique failed.
    """
    if settings.is_compat and has_failed:
        return True
    reward = candidate["reward"]
    return reward is not None and (reward > settings.skip_threshold or reward == MAX_SCORE)


def rank(children: Sequence[CandidateRef]) -> list[CandidateRef]:
    """Return the children best first: by path reward, ties by creation order, unscored ones last."""
    return sorted(children, key=lambda child: (child["reward"] is None, -_sort_value(child)))


def prune_beam(children: Sequence[CandidateRef], *, settings: Settings, level: int) -> list[CandidateRef]:
    """Return the candidates that go on to the next level, best first.

    Unscored children never displace scored ones: they stay only when the whole level is unscored. Outside compat,
    equal prompts take one place. The level seeds the stochastic draw, and sets its temperature.
    """
    ranked = rank(children)
    scored = [child for child in ranked if child["reward"] is not None]
    contenders = scored or ranked
    if settings.deduplicate:
        contenders = _first_of_each_prompt(contenders)
    if settings.min_reward is not None:
        accepted = [one for one in contenders if (one["path_reward"] or 0.0) >= settings.min_reward]
        contenders = accepted or contenders
    if settings.beam_sampling == "stochastic":
        contenders = _draw(contenders, settings=settings, level=level)
    return contenders[: settings.beam_size]


def _sort_value(child: CandidateRef) -> float:
    value = child["path_reward"]
    return -math.inf if value is None else value


def _first_of_each_prompt(ranked: Sequence[CandidateRef]) -> list[CandidateRef]:
    best_by_prompt: dict[str, CandidateRef] = {}
    for child in ranked:
        best_by_prompt.setdefault(child["prompt_hash"], child)
    return list(best_by_prompt.values())


def _draw(ranked: Sequence[CandidateRef], *, settings: Settings, level: int) -> list[CandidateRef]:
    """Draw the beam without replacement, with weights exp(path reward / temperature); what was drawn keeps its rank."""
    generator = random.Random(f"{settings.seed}/beam/{level}")
    temperature = max(settings.beam_temperature * settings.beam_temperature_decay ** (level - 1), _MIN_TEMPERATURE)
    pool = list(ranked)
    drawn: list[CandidateRef] = []
    best = max((_sort_value(child) for child in pool), default=0.0)
    while pool and len(drawn) < settings.beam_size:
        below_best = [_sort_value(child) - best for child in pool]
        weights = [1.0 if math.isnan(one) else math.exp(one / temperature) for one in below_best]
        drawn.append(pool.pop(generator.choices(range(len(pool)), weights)[0] if sum(weights) > 0 else 0))
    return [child for child in ranked if child in drawn]
