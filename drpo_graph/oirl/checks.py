"""What is odd about a table of demonstrations and no reason to refuse it: one line each, for whoever looks at it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import SPLITS, Demonstrations
from drpo_graph.oirl.splits import find_leak, held_out_prompts, merge_queries
from drpo_graph.safety.texts import shorten

FEW_TRIALS: Final = 30
"""Below so many, a prompt's mean outcome is known to within some 0.2 only."""
FEW_QUERIES: Final = 10
_MAX_NAMES = 4


def check_demonstrations(demonstrations: Demonstrations) -> tuple[str, ...]:
    """Return what is odd about a table and can be worked with, one line each; none where nothing is."""
    checks = (
        _check_models,
        _check_outcomes,
        _check_repeats,
        _check_texts,
        _check_names,
        _check_size,
        _check_trials,
        _check_sides,
    )
    lines = [line for check in checks for line in check(demonstrations)]
    leak = find_leak(demonstrations)
    return (*lines, leak.line) if leak is not None else tuple(lines)


def choose_model(demonstrations: Demonstrations, model: str | None = None) -> Demonstrations:
    """Return the rows of one model: what prompts do depends on who answers.

    Args:
        model: Whose; it may be left out where the table has one model.

    Raises:
        DemonstrationsError: there are several models and none is chosen, or none of the one that is.
    """
    present = list_models(demonstrations)
    if model is None and len(present) > 1:
        raise DemonstrationsError(
            f"The demonstrations are of {len(present)} models ({_list(present)}): choose one, with --model "
            "NAME or model=NAME; '' names those whose model is not told."
        )
    if model is not None and model not in present:
        raise DemonstrationsError(f"No demonstration is of the model {model!r}: there are those of {_list(present)}.")
    if len(present) <= 1:
        return demonstrations
    return demonstrations.take(demonstrations.model_ids == demonstrations.models.index(model or ""))


def check_outcomes_differ(demonstrations: Demonstrations) -> None:
    """Do nothing where there is something to learn.

    Raises:
        DemonstrationsError: all outcomes are the same.
    """
    lowest, highest = float(demonstrations.outcomes.min()), float(demonstrations.outcomes.max())
    if lowest == highest:
        raise DemonstrationsError(
            f"Every one of the {len(demonstrations)} outcomes is {lowest:g}: there is nothing to tell apart. Take "
            "queries that some prompts answer rightly and some do not."
        )


def list_models(demonstrations: Demonstrations) -> tuple[str, ...]:
    """Return the models that rows are of."""
    return tuple(demonstrations.models[number] for number in np.unique(demonstrations.model_ids))


def _check_models(table: Demonstrations) -> Iterator[str]:
    models = list_models(table)
    if len(models) > 1:
        yield f"The rows are of {len(models)} models ({_list(models)}): choose one to learn from."


def _check_outcomes(table: Demonstrations) -> Iterator[str]:
    if len(np.unique(table.outcomes)) == 1:
        yield f"Every outcome is {table.outcomes[0]:g}: there is nothing to learn from."


def _check_repeats(table: Demonstrations) -> Iterator[str]:
    # One number a trial. What stands on both sides is no repetition: it is a leak.
    shape = (len(table.queries), len(table.prompts), len(table.models), len(SPLITS))
    trial = np.ravel_multi_index((table.query_ids, table.prompt_ids, table.model_ids, table.splits), shape)
    _, place, num_rows = np.unique(trial, return_inverse=True, return_counts=True)
    num_again = len(table) - len(num_rows)
    if not num_again:
        return
    lowest, highest = np.full(len(num_rows), np.inf), np.full(len(num_rows), -np.inf)
    np.minimum.at(lowest, place, table.outcomes)
    np.maximum.at(highest, place, table.outcomes)
    num_repeated, num_contrary = int((num_rows > 1).sum()), int((highest > lowest).sum())
    yield (
        f"{num_again} of {len(table)} rows repeat a query, prompt and model: repeated draws are averaged. Leave copies "
        "of a row out."
    )
    if num_contrary:
        yield (
            f"{num_contrary} of {num_repeated} repeated trials ({num_contrary / num_repeated:.0%}) contradict each "
            "other: that much is chance, and the mean counts."
        )


def _check_texts(table: Demonstrations) -> Iterator[str]:
    num_written, num_texts = (len(np.unique(one.query_ids)) for one in (table, merge_queries(table)))
    if num_texts < num_written:
        yield f"{num_written} queries are {num_texts} texts, some of them written in several ways."


def _check_trials(table: Demonstrations) -> Iterator[str]:
    num_trials = np.bincount(table.prompt_ids, minlength=len(table.prompts))
    few = np.flatnonzero((num_trials > 0) & (num_trials < FEW_TRIALS))
    if len(few):
        yield (
            f"{_count(len(few), 'prompt')} with fewer than {FEW_TRIALS} trials: {_name(table, few)}; the fewest are "
            f"{num_trials[few].min()}. Means of so few are rough."
        )


def _check_sides(table: Demonstrations) -> Iterator[str]:
    num_by_side = {side: int(table.is_in(side).sum()) for side in SPLITS}
    if num_by_side[""] and num_by_side[""] < len(table):
        yield f"{num_by_side['']} of {len(table)} rows are on neither side."
    if not num_by_side["train"] or not num_by_side["test"]:
        return
    held_out = np.asarray(held_out_prompts(table), dtype=np.intp)
    if len(held_out):
        yield f"{_count(len(held_out), 'prompt')} on the test side alone, held out: {_name(table, held_out)}."
    train, test = (np.unique(table.prompt_ids[table.is_in(side)]) for side in ("train", "test"))
    untested = np.setdiff1d(train, test)
    if len(untested):
        yield f"{_count(len(untested), 'prompt')} on the training side alone, never tested: {_name(table, untested)}."


def _check_names(table: Demonstrations) -> Iterator[str]:
    counts = Counter(table.prompt_names)
    if again := [name for name, count in counts.items() if count > 1]:
        yield f"Several prompts have one name, and cannot be told apart in a report: {_list(again)}."


def _check_size(table: Demonstrations) -> Iterator[str]:
    if len(table.queries) < FEW_QUERIES:
        counted = _count(len(table.queries), "query", "queries")
        yield f"The rows are of {counted} alone: what suits one query and not another cannot be learned from so few."


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def _name(table: Demonstrations, prompts: NDArray[np.integer[Any]]) -> str:
    return _list([table.prompt_names[number] for number in prompts])


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(shorten(name, 40)) for name in names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown} and {len(names) - _MAX_NAMES} more"
