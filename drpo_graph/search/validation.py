"""Selection on held-out queries: who is compared, and whether a difference is more than chance. Pure functions."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drpo_graph.records import MIN_QUERIES, ROOT_ID, PairedComparison, Validation, mean

NUM_FLIPS = 2_000
_EXHAUSTIVE_QUERIES = 11
"""Up to so many queries all ways to flip signs are tried: there are no more than the number above."""
_TAIL = 0.025
"""Half of what a 95% interval leaves out."""
_POWER_Z = 0.84
"""A difference that is so many standard errors beyond the bound is shown in four of five cases."""
_ROUNDING = 1e-9
"""Sums of the same numbers in another order differ by less."""


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


def compare_on_validation(
    rewards_by_candidate: Mapping[str, Mapping[str, float | None]], *, seed: int, num_flips: int = NUM_FLIPS
) -> Validation:
    """Return who wins on the validation queries, and the paired difference of each contender to the initial prompt.

    Were no contender better, one would still be called so in 2.5% of all cases at most, however many there are: the
    interval of each is widened for their number. A query that has no score with both prompts speaks for neither, so
    that nobody wins by the queries that came out unscored.

    Args:
        rewards_by_candidate: Each one's rewards by query id; the root's among them.
        seed: The signs are drawn from a stream of its own.
        num_flips: How many ways to flip signs are drawn, where there are too many to try them all.
    """
    initial = {query_id: one for query_id, one in rewards_by_candidate[ROOT_ID].items() if one is not None}
    contenders = [one for one in rewards_by_candidate if one != ROOT_ID]
    differences = [
        [None if (reward := rewards_by_candidate[one].get(query_id)) is None else _round(reward - initial[query_id])
         for query_id in initial]
        for one in contenders
    ]  # fmt: skip
    bound = find_bound(differences, generator=random.Random(f"{seed}/signs"), num_flips=num_flips)
    comparisons = [
        _compare(one, mean(list(rewards_by_candidate[one].values())), own, bound)
        for one, own in zip(contenders, differences, strict=True)
    ]
    comparisons.sort(key=lambda one: -_round((one.difference or 0.0) * one.num_queries))
    best = comparisons[0] if comparisons else None
    # The initial prompt wins ties: a longer prompt must earn its place.
    is_better = best is not None and best.difference is not None and best.difference > _ROUNDING
    return Validation(
        num_queries=len(rewards_by_candidate[ROOT_ID]),
        initial_reward=mean(list(initial.values())),
        comparisons=tuple(comparisons),
        selected_id=best.candidate_id if best is not None and is_better else ROOT_ID,
        is_significant=best is not None and is_better and best.is_significant,
    )


def find_bound(
    differences: Sequence[Sequence[float | None]], *, generator: random.Random, num_flips: int = NUM_FLIPS
) -> float:
    """Return what the largest self-normalised sum of several contenders exceeds by chance in 2.5% of all cases.

    A sum of differences over the root of their sum of squares: had no prompt any effect, each query's differences
    would be as likely with the other sign, all contenders' at once, as they are compared with the same rewards. So
    the largest of their sums under flipped signs is what chance makes of them (max-T: Westfall and Young 1993,
    chapter 2), whatever their distribution, and however they go together.

    Args:
        differences: By contender, one per query; ``None`` where there is none.
        generator: Draws the signs.
        num_flips: How often.
    """
    num_queries = len(differences[0]) if differences else 0
    rows = []
    for own in differences:
        scale = math.sqrt(math.fsum(one * one for one in own if one is not None)) or 1.0
        rows.append([(one or 0.0) / scale for one in own])
    by_query = list(zip(*rows, strict=True))
    totals = [math.fsum(row) for row in rows]
    if num_queries <= _EXHAUSTIVE_QUERIES:
        patterns: Sequence[int] = range(2**num_queries)
    else:
        # The signs as they are belong to the ways that they might have been.
        patterns = [0, *(generator.getrandbits(num_queries) for _ in range(num_flips - 1))]
    largest = []
    for pattern in patterns:
        flipped = [one for place, one in enumerate(by_query) if pattern >> place & 1]
        sums = map(sum, zip(*flipped, strict=True)) if flipped else (0.0 for _ in rows)
        largest.append(max((total - 2 * one for total, one in zip(totals, sums, strict=True)), default=0.0))
    largest.sort(reverse=True)
    return largest[int(_TAIL * len(largest))] + _ROUNDING


def mean_interval(values: Sequence[float], *, generator: random.Random) -> tuple[float, float] | None:
    """Return the 95% interval of a mean by flipped signs, or ``None`` where the values are too few for one."""
    bound = find_bound([values], generator=generator)
    return _interval(values, bound)


def _interval(values: Sequence[float], bound: float) -> tuple[float, float] | None:
    """Return the mean's interval: it lies above zero just where the self-normalised sum lies above the bound."""
    number = len(values)
    # Where all have one sign, of one size, nothing is left to tell how far the mean might be from them.
    if number < MIN_QUERIES or number <= bound * bound:
        return None
    centre = math.fsum(values) / number
    # Of the sum as a t statistic: t^2 = s^2 (n - 1) / (n - s^2).
    margin = bound * math.sqrt((number - 1) / (number - bound * bound)) * _standard_error(values)
    return _round(centre - margin), _round(centre + margin)


def _round(value: float) -> float:
    """Return a number without what sums of the same scores in another order differ by, which is no difference."""
    return round(value, 9) + 0.0


def _standard_error(values: Sequence[float]) -> float:
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((one - centre) ** 2 for one in values) / (len(values) - 1) / len(values))


def _compare(
    candidate_id: str, reward: float | None, differences: Sequence[float | None], bound: float
) -> PairedComparison:
    found = [one for one in differences if one is not None]
    difference, interval = _round(math.fsum(found) / len(found)) if found else None, _interval(found, bound)
    return PairedComparison(
        candidate_id=candidate_id,
        num_queries=len(found),
        reward=reward,
        difference=difference,
        interval_low=interval[0] if interval else None,
        interval_high=interval[1] if interval else None,
        needed_queries=_plan(found, bound) if difference is not None and difference > _ROUNDING else None,
    )


def _plan(differences: Sequence[float], bound: float) -> int | None:
    """Return about how many queries would show a mean difference like this one, in four of five cases."""
    if len(differences) < 2:
        return None
    spread = _standard_error(differences) * math.sqrt(len(differences))
    return max(MIN_QUERIES, math.ceil(((bound + _POWER_Z) * spread * len(differences) / math.fsum(differences)) ** 2))
