"""Selection on held-out queries: who is compared, and whether a difference is more than chance. Pure functions."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drpo_graph.records import ROOT_ID, PairedComparison, Validation, mean

_NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95


class Contender(NamedTuple):
    """A candidate that may be delivered."""

    id: str
    prompt_hash: str
    path_reward: float | None


def choose_contenders(beam: Sequence[Contender], others: Sequence[Contender], *, num_best: int) -> list[str]:
    """Return the ids to compare on held-out queries: the root, the final beam, and the best by path reward.

    Of equal prompts only the first is kept, so that none is paid for twice. The others are every scored candidate of
    the search in creation order, the root first.
    """
    best = sorted(others, key=lambda one: -(one.path_reward if one.path_reward is not None else float("-inf")))
    root = [one for one in others if one.id == ROOT_ID]
    id_by_prompt: dict[str, str] = {}
    for contender in [*root, *beam, *best[:num_best]]:
        id_by_prompt.setdefault(contender.prompt_hash, contender.id)
    return list(id_by_prompt.values())


def compare_on_validation(rewards_by_candidate: Mapping[str, Mapping[str, float | None]], *, seed: int) -> Validation:
    """Return who wins on the validation queries, and the paired difference of each contender to the initial prompt.

    Each one's rewards are by query id, the root's among them; the bootstrap draws from a stream of its own.
    """
    initial = rewards_by_candidate[ROOT_ID]
    comparisons = [
        _compare(candidate_id, rewards, initial, seed)
        for candidate_id, rewards in rewards_by_candidate.items()
        if candidate_id != ROOT_ID
    ]
    comparisons.sort(key=lambda one: -(one.reward if one.reward is not None else float("-inf")))
    initial_reward = mean(list(initial.values()))
    best = comparisons[0] if comparisons else None
    # The initial prompt wins ties: a longer prompt must earn its place.
    is_better = best is not None and best.difference is not None and best.difference > 0
    return Validation(
        num_queries=len(initial),
        initial_reward=initial_reward,
        comparisons=tuple(comparisons),
        selected_id=best.candidate_id if best is not None and is_better else ROOT_ID,
        is_significant=best is not None and is_better and best.is_significant,
    )


def bootstrap_interval(differences: Sequence[float], *, generator: random.Random) -> tuple[float, float] | None:
    """Return the 95% percentile bootstrap interval of the mean, or ``None`` for fewer than two values."""
    if len(differences) < 2:
        return None
    size = len(differences)
    means = sorted(sum(generator.choices(differences, k=size)) / size for _ in range(_NUM_RESAMPLES))
    tail = (1 - _CONFIDENCE) / 2
    return means[int(tail * _NUM_RESAMPLES)], means[int((1 - tail) * _NUM_RESAMPLES) - 1]


def _compare(
    candidate_id: str, rewards: Mapping[str, float | None], initial: Mapping[str, float | None], seed: int
) -> PairedComparison:
    differences = [
        reward - former
        for query_id, reward in rewards.items()
        if reward is not None and (former := initial.get(query_id)) is not None
    ]
    interval = bootstrap_interval(differences, generator=random.Random(f"{seed}/bootstrap/{candidate_id}"))
    return PairedComparison(
        candidate_id=candidate_id,
        num_queries=len(differences),
        reward=mean(list(rewards.values())),
        difference=mean(differences),
        interval_low=interval[0] if interval else None,
        interval_high=interval[1] if interval else None,
    )
