"""Queries in a seeded order, and their fingerprint."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence

from drpo_graph.errors import DatasetError
from drpo_graph.records import Query


def order_queries(queries: Sequence[Query], *, seed: int, num_queries: int | None = None) -> tuple[Query, ...]:
    """Return the queries, or ``num_queries`` of them, in an order that the seed alone decides.

    Every kind keeps its share: ``int(num_queries * share)`` of its queries, the remainder handed out to the kinds in
    turn; the kinds are interleaved in proportion and then shuffled, as published.

    Raises:
        DatasetError: ``num_queries`` is below 1 or more than there are.
    """
    if num_queries is not None and not 1 <= num_queries <= len(queries):
        raise DatasetError(
            f"{num_queries} queries were asked for, but the dataset has {len(queries)}: ask for 1 to {len(queries)}."
        )
    num_wanted = len(queries) if num_queries is None else num_queries
    queries_by_kind: dict[str, list[Query]] = {}
    for query in queries:
        queries_by_kind.setdefault(query.kind, []).append(query)
    # Whole-number division: in floats, int(90 * (52 / 180)) is 25, one short of the share.
    num_by_kind = {kind: num_wanted * len(group) // len(queries) for kind, group in queries_by_kind.items()}
    # Fewer are left than there are kinds, and rounding down left room in each.
    for kind in list(num_by_kind)[: num_wanted - sum(num_by_kind.values())]:
        num_by_kind[kind] += 1
    draws = [
        random.Random(f"{seed}/queries/{kind}").sample(group, num_by_kind[kind])
        for kind, group in queries_by_kind.items()
    ]
    ordered = _interleave(draws)
    random.Random(f"{seed}/queries/order").shuffle(ordered)
    return tuple(ordered)


def check_distinct(training: Sequence[Query], validation: Sequence[Query]) -> None:
    """Do nothing when training and validation queries share no id.

    Raises:
        DatasetError: they do.
    """
    held_out = {query.id for query in validation}
    shared = sorted({query.id for query in training if query.id in held_out})
    if shared:
        raise DatasetError(f"Training and validation queries share the ids {', '.join(shared[:5])}.")


def dataset_hash(queries: Iterable[Query]) -> str:
    """Return the SHA-256 (hex) of queries and what is asked with them, in order: a part of a run's fingerprint."""
    parts = [
        [
            query.id,
            query.text,
            query.kind,
            *([sorted(query.values.items())] if query.values else []),
            *([[[turn.role, turn.content] for turn in query.history]] if query.history else []),
            *([{"reference": query.reference}] if query.reference else []),
            *([{"metadata": query.metadata}] if query.metadata else []),
        ]
        for query in queries
    ]
    canonical = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _interleave(groups: Sequence[Sequence[Query]]) -> list[Query]:
    """Return all queries such that every prefix has about each group's share of the whole."""
    num_total = sum(len(group) for group in groups)
    num_taken = [0] * len(groups)
    interleaved = []
    for position in range(1, num_total + 1):
        deficits = [position * len(group) - taken * num_total for group, taken in zip(groups, num_taken, strict=True)]
        neediest = deficits.index(max(deficits))
        interleaved.append(groups[neediest][num_taken[neediest]])
        num_taken[neediest] += 1
    return interleaved
