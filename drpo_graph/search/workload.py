"""What the levels of a search ask of the roles, by counting.

In the worst case that is an upper bound: easy levels add all that they may, every level that can be is run a second
time, every reply is asked for as often as one can be, and no two candidates share a call.
"""

from collections.abc import Sequence
from typing import NamedTuple

from drpo_graph.records import Role
from drpo_graph.search.levels import has_fixed_queries, query_indices, repeat_indices
from drpo_graph.settings.settings import Settings


class Workload(NamedTuple):
    """What one level, or the validation, asks of the roles."""

    selections: int = 0
    """Queries whose metrics are selected."""
    rewrites: int = 0
    """Candidates to rewrite, each by one request with ``num_proposed`` samples."""
    rollouts: int = 0


def add_workloads(levels: Sequence[Workload]) -> Workload:
    """Return what all of them ask for together."""
    return Workload(*map(sum, zip(*levels, strict=True)))


def plan_levels(
    settings: Settings, *, num_queries: int, first: int = 0, last: int, num_parents: int = 1, num_repeats: int = 0
) -> list[Workload]:
    """Return what each level from the first to the last asks for, if no parent is easy and none is run again.

    Level 0 is the root's evaluation; levels for which the queries do not last are left out. Before the first one there
    are ``num_parents`` candidates in the beam, and ``num_repeats`` levels were run again, each on a round of queries.
    """
    # A kept parent on the queries that it was run on costs nothing.
    is_kept_free = has_fixed_queries(settings, num_queries=num_queries)
    num_children = settings.n_actions + settings.keep_parents
    rounds = _plan_rounds(settings, num_queries=num_queries, last=last + num_repeats)
    levels = []
    for level in range(first, last + 1):
        selections, size = rounds[level + num_repeats]
        if level == 0:
            levels.append(Workload(selections, 0, size))
        elif size:
            per_parent = settings.n_actions if is_kept_free else num_children
            levels.append(Workload(selections, num_parents, num_parents * per_parent * size))
            num_parents = min(settings.beam_size, num_parents * num_children)
    return levels


def _plan_rounds(settings: Settings, *, num_queries: int, last: int) -> list[tuple[int, int]]:
    """Return of each round of queries how many are new, and how many it has."""
    seen: set[int] = set()
    rounds = []
    for number in range(last + 1):
        indices = set(query_indices(number, settings=settings, num_queries=num_queries))
        rounds.append((len(indices - seen), len(indices)))
        seen |= indices
    return rounds


def repeat_all(levels: Sequence[Workload], settings: Settings, *, num_queries: int) -> list[Workload]:
    """Return the levels from the root on if each that can be is run a second time, on the queries of the next round."""
    rounds = _plan_rounds(settings, num_queries=num_queries, last=2 * len(levels) - 1)
    repeated = []
    for level, work in enumerate(levels):
        # A round has at most as many queries as those before it, so a level that comes later is not larger for that.
        firsts = range(level, 2 * level + 1)
        num_rounds = 1 + any(repeat_indices(one, settings=settings, num_queries=num_queries) for one in firsts)
        selections = sum(new for new, _ in rounds[2 * level : 2 * level + 2])
        repeated.append(work._replace(selections=selections, rollouts=work.rollouts * num_rounds))
    return repeated


def plan_validation(settings: Settings, *, num_validation: int) -> Workload:
    """Return what selection on held-out queries asks for: the root, the beam and the best, each on every query."""
    return Workload(num_validation, 0, (1 + 2 * settings.beam_size) * num_validation)


def count_calls(work: Workload, settings: Settings, *, is_worst: bool) -> dict[Role, int]:
    """Return the calls of each role that a workload takes."""
    asked, repaired = (settings.max_reply_attempts, 1) if is_worst and not settings.is_compat else (1, 0)
    return {
        "base": work.rollouts * asked,
        "metrics": work.selections * (asked + repaired) * settings.has_judge,
        "critic": work.rollouts * (asked + repaired) * settings.has_judge,
        # A server that ignores n is asked once per sample.
        "optimizer": work.rewrites * (settings.num_proposed if is_worst else 1) * (asked + repaired),
    }
