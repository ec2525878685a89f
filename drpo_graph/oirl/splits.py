"""Sides and folds by query text: the same question never stands on both sides, however it is written."""

import hashlib
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import SPLITS, Demonstrations
from drpo_graph.safety.texts import strip_unseen

_TRAIN, _TEST = SPLITS.index("train"), SPLITS.index("test")
_PLAIN: Final = str.maketrans("‘’‛′“”„″‐‑‒–—−", "''''\"\"\"\"------")
"""Quotation marks and dashes as keyboards have them."""


def normalise(text: str) -> str:
    """Return what two texts have in common that say the same question: case, white space and Unicode form put aside."""
    if text.isascii() and text.isprintable():
        # Most questions, at a fraction of the time; what follows would do no more to them.
        return " ".join(text.lower().split())
    # Too much in common does little harm: two texts that are taken for one are kept on one side.
    form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", strip_unseen(text)).casefold())
    return " ".join(form.translate(_PLAIN).split())


def merge_queries(demonstrations: Demonstrations) -> Demonstrations:
    """Return the table with queries that are written alike as one, under the first text; rows keep their order."""
    number_by_text: dict[str, int] = {}
    numbers = [number_by_text.setdefault(normalise(text), len(number_by_text)) for text in demonstrations.queries]
    if len(number_by_text) == len(numbers):
        return demonstrations
    texts = dict(zip(reversed(numbers), reversed(demonstrations.queries), strict=True))
    return replace(
        demonstrations,
        queries=tuple(texts[number] for number in range(len(texts))),
        query_ids=np.asarray(numbers, dtype=np.int32)[demonstrations.query_ids],
    )


def split_by_query(demonstrations: Demonstrations, *, test_share: float, seed: int) -> Demonstrations:
    """Return the table with new sides, all rows of a query's text on one.

    The draw depends on the texts alone, not their order: rows that come or go move few others.

    Raises:
        DemonstrationsError: the share leaves one side empty.
    """
    merged = merge_queries(demonstrations)
    present = np.unique(merged.query_ids)
    num_test = round(len(present) * test_share)
    if not 0 < num_test < len(present):
        raise DemonstrationsError(
            f"A test share of {test_share:g} puts {num_test} of {len(present)} queries on the test side, expected at "
            "least one on each. Give another share, or more queries."
        )
    test = _draw(merged, present, num=num_test, purpose=f"{seed}/split")
    return demonstrations.with_splits(np.where(np.isin(merged.query_ids, test), _TEST, _TRAIN).astype(np.int8))


def subsample_train(demonstrations: Demonstrations, *, share: float, seed: int) -> Demonstrations:
    """Return the table with the rows of a share of the training queries; the other sides stay whole.

    What a smaller share keeps, a larger one of the same seed keeps too.

    Raises:
        DemonstrationsError: the share is not above 0 and at most 1, or leaves no training query.
    """
    merged, is_train = merge_queries(demonstrations), demonstrations.is_in("train")
    present = np.unique(merged.query_ids[is_train])
    num_kept = round(len(present) * share)
    if not 0 < share <= 1 or not num_kept:
        raise DemonstrationsError(f"A share of {share:g} keeps {num_kept} of {len(present)} training queries.")
    kept = _draw(merged, present, num=num_kept, purpose=f"{seed}/subsample")
    return demonstrations.take(~is_train | np.isin(merged.query_ids, kept))


def held_out_prompts(demonstrations: Demonstrations) -> tuple[int, ...]:
    """Return the prompts, by number, that stand on the test side and not on the training side."""
    train, test = (set(demonstrations.prompt_ids[demonstrations.is_in(side)].tolist()) for side in ("train", "test"))
    return tuple(sorted(test - train))


def hold_out_prompts(demonstrations: Demonstrations, *, num: int, seed: int) -> Demonstrations:
    """Return the table without the training rows of some prompts, drawn from those that stand on both sides.

    Raises:
        DemonstrationsError: there are not so many, or none would be left to learn from.
    """
    train, test = (np.unique(demonstrations.prompt_ids[demonstrations.is_in(side)]) for side in ("train", "test"))
    both = sorted(np.intersect1d(train, test).tolist(), key=lambda number: demonstrations.prompts[number])
    if not 0 < num <= len(both) or num == len(train):
        raise DemonstrationsError(
            f"{num} prompts cannot be held out: {len(both)} stand on both sides, and one has to be left for training."
        )
    return drop_from_train(demonstrations, random.Random(f"{seed}/hold-out").sample(both, num))


def drop_from_train(demonstrations: Demonstrations, prompts: Sequence[int]) -> Demonstrations:
    """Return the table without the training rows of some prompts, named by number."""
    return demonstrations.take(~(demonstrations.is_in("train") & np.isin(demonstrations.prompt_ids, list(prompts))))


def fold_of(query_ids: NDArray[np.int32], num_folds: int, *, seed: int) -> NDArray[np.int8]:
    """Return the fold of each row, from 0; the rows of a query share one, and folds differ by one query at most.

    Args:
        query_ids: Per row, the query's number; those of ``merge_queries`` where a text may be written in two ways.

    Raises:
        DemonstrationsError: there are fewer queries than folds, or fewer than two folds.
    """
    present, place = np.unique(query_ids, return_inverse=True)
    if not 2 <= num_folds <= min(len(present), np.iinfo(np.int8).max):
        raise DemonstrationsError(f"{len(present)} queries cannot be put into {num_folds} folds.")
    folds = np.arange(len(present), dtype=np.int64) % num_folds
    order = list(range(len(present)))
    random.Random(f"{seed}/folds").shuffle(order)
    folded: NDArray[np.int8] = folds[order][place].astype(np.int8)
    return folded


class Leak(NamedTuple):
    """Queries that stand on both sides of a split: what was learned on the one can be looked up on the other."""

    num_rows: int
    """Rows of the test side whose query has rows on the training side."""
    num_test_rows: int
    num_queries: int
    """Queries of the test side with rows on the training side; queries that are written alike count once."""
    num_test_queries: int
    example: str
    lookup_prompt_ids: NDArray[np.int32]
    """What looking up earlier answers chooses, for each query of the test side in order of its number: for one that
    leaked the prompt that did best on it, for others the one that did best in training; -1 where none of those was
    tried."""
    lookup_score: float | None
    """Mean outcome of these choices, from 0 to 1, a query as good as another; of two prompts that did alike on a query,
    the one that did better in training counts. ``None`` where no prompt was tried on both sides."""
    single_score: float | None
    """Mean outcome of the prompt that did best in training, on the same queries."""

    @property
    def line(self) -> str:
        """The leak in one line."""
        told = (
            f"{self.num_queries} of {self.num_test_queries} test queries stand on the training side too "
            f"({self.num_rows} of {self.num_test_rows} test rows)"
        )
        if self.lookup_score is None or self.single_score is None:
            return f"{told}: split by query."
        return (
            f"{told}: looking up earlier answers alone scores {self.lookup_score:.1%} there, the best single prompt "
            f"{self.single_score:.1%}. Split by query."
        )


def find_leak(demonstrations: Demonstrations) -> Leak | None:
    """Return what stands on both sides, ``None`` where nothing does."""
    merged = merge_queries(demonstrations)
    train, test = (merged.take(merged.is_in(side)) for side in ("train", "test"))
    tested = np.unique(test.query_ids)
    leaked = np.intersect1d(tested, train.query_ids)
    if not len(leaked):
        return None
    earlier, outcomes = train.grid().mean[tested], test.grid().mean[tested]
    overall = _prompt_means(train)
    choices = _look_up(earlier, overall, was_tried=~np.isnan(outcomes))
    single = _look_up(np.full_like(earlier, np.nan), overall, was_tried=~np.isnan(outcomes))
    return Leak(
        num_rows=int(np.isin(test.query_ids, leaked).sum()),
        num_test_rows=len(test),
        num_queries=len(leaked),
        num_test_queries=len(tested),
        example=merged.queries[leaked[0]],
        lookup_prompt_ids=choices,
        lookup_score=_score(outcomes, choices),
        single_score=_score(outcomes, single),
    )


def _draw(merged: Demonstrations, present: NDArray[np.int32], *, num: int, purpose: str) -> list[int]:
    """Return some of the queries: those whose texts have the lowest hashes."""

    def rank(query: int) -> bytes:
        return hashlib.sha256(f"{purpose}/{normalise(merged.queries[query])}".encode("utf-8", "replace")).digest()

    return sorted(present.tolist(), key=rank)[:num]


def _prompt_means(table: Demonstrations) -> NDArray[np.float64]:
    """Return the mean outcome of each prompt, NaN where it was never tried."""
    num_prompts = len(table.prompts)
    num_trials = np.bincount(table.prompt_ids, minlength=num_prompts)
    total = np.bincount(table.prompt_ids, weights=table.outcomes, minlength=num_prompts)
    return np.where(num_trials > 0, total / np.maximum(num_trials, 1), np.nan)


def _look_up(
    earlier: NDArray[np.float32], overall: NDArray[np.float64], *, was_tried: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Return the prompt for each query by its own earlier outcomes, else by those of all queries."""
    # What is known of the query itself counts first; the prompt's mean over all only parts those that did alike.
    worth = np.where(np.isnan(earlier), overall, 2 + earlier + overall / 1e6)
    worth = np.where(was_tried & ~np.isnan(worth), worth, -np.inf)
    return np.where(np.isneginf(worth.max(axis=1)), -1, worth.argmax(axis=1)).astype(np.int32)


def _score(outcomes: NDArray[np.float32], choices: NDArray[np.int32]) -> float | None:
    chosen = np.flatnonzero(choices >= 0)
    return float(outcomes[chosen, choices[chosen]].mean()) if len(chosen) else None
