"""Rounds: repeated splits of one table, so that neither a lucky split nor a lucky seed decides."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.splits import (
    Leak,
    drop_from_train,
    find_leak,
    held_out_prompts,
    hold_out_prompts,
    merge_queries,
    split_by_query,
    subsample_train,
)

TRAIN_SHARE = 0.8
"""Of the training queries that a table's own split names, so many are learned from in each round."""


class Setting(NamedTuple):
    """What is fixed over all rounds."""

    table: Demonstrations
    """Queries that are written alike are one."""
    has_own_split: bool
    """Whether the table's own split is used; else each round splits by query text."""
    leak: Leak | None
    """What is wrong with its own split, where that is why it is not used."""
    trained: NDArray[np.intp]
    """Numbers of the prompts that are learned from."""
    held_out: NDArray[np.intp]
    """Numbers of the prompts that are seen on the test side alone."""
    test_share: float
    seed: int


class Round(NamedTuple):
    """One split."""

    train: Demonstrations
    """Trials that are learned from."""
    test_queries: NDArray[np.intp]
    seed: int


def open_setting(demonstrations: Demonstrations, *, test_share: float, num_held_out: int | None, seed: int) -> Setting:
    """Return how a table is split.

    Its own split is used where it has one in which no question stands on both sides.

    Args:
        demonstrations: Trials of one model.
        test_share: Of the queries, where the table is split here.
        num_held_out: Prompts to learn nothing of; those without a row on the train side when absent, else none.
        seed: Of the draws.

    Raises:
        DemonstrationsError: nothing is left to learn from or to test on.
    """
    table = merge_queries(demonstrations)
    has_sides = bool(table.is_in("train").any() and table.is_in("test").any())
    leak = find_leak(demonstrations) if has_sides else None
    held_out = held_out_prompts(table) if has_sides else ()
    if num_held_out and has_sides:
        table = hold_out_prompts(table, num=num_held_out, seed=seed)
        held_out = tuple(sorted({*held_out, *held_out_prompts(table)}))
    elif num_held_out:
        held_out = _draw_prompts(table, num_held_out, seed=seed)
    trained = np.setdiff1d(np.arange(len(table.prompts)), held_out)
    if not len(trained):
        raise DemonstrationsError("No prompt is left to learn from: hold fewer out.")
    return Setting(
        table, has_sides and leak is None, leak, trained, np.asarray(held_out, dtype=np.intp), test_share, seed
    )


def open_round(setting: Setting, number: int) -> Round:
    """Return one round's split; equal numbers give equal splits."""
    seed = setting.seed + number
    if setting.has_own_split:
        table = subsample_train(setting.table, share=TRAIN_SHARE, seed=seed)
    else:
        table = split_by_query(setting.table, test_share=setting.test_share, seed=seed)
    table = drop_from_train(table, setting.held_out.tolist())
    train = table.take(table.is_in("train"))
    if not len(train):
        raise DemonstrationsError("A round has nothing to learn from: there are too few queries.")
    return Round(train, np.unique(table.query_ids[table.is_in("test")]).astype(np.intp), seed)


def _draw_prompts(table: Demonstrations, num: int, *, seed: int) -> tuple[int, ...]:
    if not 0 < num < len(table.prompts):
        raise DemonstrationsError(f"{num} of {len(table.prompts)} prompts cannot be held out: leave at least one.")
    return tuple(np.random.default_rng(seed).permutation(len(table.prompts))[:num].tolist())
