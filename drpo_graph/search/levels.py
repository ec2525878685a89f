"""Which queries a level uses, and how deep the search goes. Pure functions of the settings.

Queries are taken by rounds: a level is one, and so is its repetition where none of its candidates could be scored.
"""

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from drpo_graph.data.order import order_queries
from drpo_graph.errors import DatasetError
from drpo_graph.records import Query
from drpo_graph.settings.settings import Settings

_ALL_KEPT: Final = 1000
"""A run keeps so many queries whatever it can use: a fork of it, or a deeper search, may go on with others."""


class DepthPlan(NamedTuple):
    """How deep the search goes after taking easy parents into account."""

    max_depth: int
    num_increases: int


def draw_queries(queries: Sequence[Query], settings: Settings) -> tuple[Query, ...]:
    """Return what a run keeps of a dataset: of a large one no more than it can use, every kind in its share.

    What was drawn stays what it is when it is drawn from again.

    Raises:
        DatasetError: the settings ask for more queries than there are.
    """
    most = max(_count_usable(settings), _ALL_KEPT)
    num_wanted = settings.num_queries or len(queries)
    if num_wanted > len(queries) != most:
        raise DatasetError(
            f"{num_wanted} queries were asked for, but the dataset has {len(queries)}: ask for 1 to {len(queries)}."
        )
    if len(queries) <= most:
        return tuple(queries)
    return order_queries(queries, seed=settings.seed, num_queries=min(num_wanted, most))


def order_drawn(queries: Sequence[Query], settings: Settings) -> tuple[Query, ...]:
    """Return the queries that :func:`draw_queries` gave in the order of the run, as many as the settings ask for."""
    num_queries = min(settings.num_queries or len(queries), len(queries))
    return order_queries(queries, seed=settings.seed, num_queries=num_queries)


def _count_usable(settings: Settings) -> int:
    """Return how many queries a run uses at most: each level may be run again on others, once."""
    if settings.query_policy == "pool":
        return settings.num_pooled
    return 2 * (settings.num_levels + settings.max_depth_increase + 1) * settings.queries_per_level


def query_indices(level: int, *, settings: Settings, num_queries: int) -> list[int]:
    """Return the places, in the run's order of queries, of the queries of a level; empty when they have run out.

    ``stream`` takes the next ``queries_per_level`` ones (the last level may get fewer). ``pool`` draws them from the
    first ones; with as many as a level needs, every level has the same.
    """
    size = settings.queries_per_level
    if settings.query_policy == "stream":
        return list(range(min(level * size, num_queries), min((level + 1) * size, num_queries)))
    pool_size = min(settings.num_pooled, num_queries)
    if size >= pool_size:
        return list(range(pool_size))
    return sorted(random.Random(f"{settings.seed}/pool/{level}").sample(range(pool_size), size))


def new_query_indices(level: int, *, settings: Settings, num_queries: int) -> list[int]:
    """Return those queries of a level that no former level used: their metrics are still to be selected."""
    seen: set[int] = set()
    if settings.query_policy == "pool":
        for former in range(level):
            seen.update(query_indices(former, settings=settings, num_queries=num_queries))
    return [one for one in query_indices(level, settings=settings, num_queries=num_queries) if one not in seen]


def has_fixed_queries(settings: Settings, *, num_queries: int) -> bool:
    """Return whether every level has the same queries."""
    pool_size = min(settings.num_pooled, num_queries)
    return settings.query_policy == "pool" and settings.queries_per_level >= pool_size


def repeat_indices(query_round: int, *, settings: Settings, num_queries: int) -> list[int]:
    """Return the queries that a round without any score is repeated on; none where there are no others."""
    present = query_indices(query_round, settings=settings, num_queries=num_queries)
    following = query_indices(query_round + 1, settings=settings, num_queries=num_queries)
    return following if set(following) - set(present) else []


def has_level(level: int, *, max_depth: int, settings: Settings, num_queries: int, num_repeats: int = 0) -> bool:
    """Return whether the search goes on to a level: depth and queries both last that far."""
    return level <= max_depth and bool(query_indices(level + num_repeats, settings=settings, num_queries=num_queries))


def plan_depth(*, is_easy: bool, max_depth: int, num_increases: int, settings: Settings) -> DepthPlan:
    """Return the depth once a level's parents are known: an easy one adds a level, up to a limit."""
    if is_easy and num_increases < settings.max_depth_increase:
        return DepthPlan(max_depth + 1, num_increases + 1)
    return DepthPlan(max_depth, num_increases)


def prefetch_indices(
    level: int, *, max_depth: int, settings: Settings, num_queries: int, num_repeats: int = 0
) -> list[int]:
    """Return the queries of a coming level whose metrics can be selected ahead; none for a level that may not come."""
    if settings.stop_reward is not None:
        return []
    if not has_level(level, max_depth=max_depth, settings=settings, num_queries=num_queries, num_repeats=num_repeats):
        return []
    return new_query_indices(level + num_repeats, settings=settings, num_queries=num_queries)
