"""The published logs of one task as labels by query and prompt, in a folder with its queries and prompts."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError, UsageError
from drpo_graph.oirl.demonstrations import SPLITS
from drpo_graph.oirl.published.logs import (
    TEST,
    TRAIN,
    Problems,
    PublishedLogs,
    check_confidences,
    load_arrays,
    read_answers,
)
from drpo_graph.oirl.published.texts import read_prompt_texts, read_query_texts
from drpo_graph.safety.installing import tell_install
from drpo_graph.safety.texts import shorten

LABEL_FILES = ("labels.npz", "labels.parquet")
_QUERIES, _PROMPTS, _CRITICS = "queries.jsonl", "prompts.json", "critics.npz"
_COLUMNS = ("row", "query", "prompt", "split", "correct")
_SIDES = (TRAIN, TEST)
"""By the number that ``row_split`` gives a side."""


class _Counts(NamedTuple):
    """What the labels say, a line for each row of the logs."""

    rows: NDArray[np.int64]
    """The rows' numbers, ascending, by which the critics name them."""
    query_ids: NDArray[np.int32]
    splits: NDArray[np.int8]
    num_trials: NDArray[np.int32]
    num_right: NDArray[np.int32]


class _Shape(NamedTuple):
    """What the texts beside the labels allow."""

    num_queries: int
    num_prompts: int


def read_labels(folder: Path, *, queries: Path | None, prompts: Path | None, model: str) -> PublishedLogs:
    """Return the logs in a folder of labels.

    Args:
        folder: It has ``labels.npz`` or ``labels.parquet`` and, unless they are given, ``queries.jsonl`` and
            ``prompts.json``; where it has ``critics.npz``, that has the self-critic's confidence.

    Raises:
        DemonstrationsError: a file cannot be read, or does not fit the others.
    """
    problems = Problems(folder)
    texts = read_query_texts(queries or folder / _QUERIES)
    tried = read_prompt_texts(prompts or folder / _PROMPTS)
    shape = _Shape(len(texts.texts), len(tried))
    path = next(folder / name for name in LABEL_FILES if (folder / name).is_file())
    if path.suffix == ".npz":
        arrays = load_arrays(path)
        _check_names(arrays, [one.name for one in tried], problems)
        counts = _count_arrays(arrays, shape, problems)
    else:
        counts = _count_parquet(path, shape, problems)
    problems.check()
    assert counts is not None
    confidences = _read_confidences(folder / _CRITICS, counts, problems)
    problems.check()
    return PublishedLogs(
        queries=texts.texts,
        prompts=tried,
        query_ids=counts.query_ids,
        splits=counts.splits,
        num_trials=counts.num_trials,
        num_right=counts.num_right,
        confidences=confidences,
        left_out=texts.notes,
        model=model,
    )


def _check_names(arrays: dict[str, NDArray[np.generic]], names: list[str], problems: Problems) -> None:
    """Note where the labels and the prompts beside them name a prompt otherwise: the columns may be other prompts'."""
    named = [str(one) for one in arrays.get("prompt_names", np.array(names))]
    if len(named) != len(names):
        problems.add(f"labels.npz has {len(named)} prompt_names, and there are {len(names)} prompts.")
    for place, (one, other) in enumerate(zip(named, names, strict=False)):
        if other and one != other:
            problems.add(
                f"Prompt {place} is {shorten(repr(one))} in labels.npz and {shorten(repr(other))} in its file."
            )


def _count_arrays(arrays: dict[str, NDArray[np.generic]], shape: _Shape, problems: Problems) -> _Counts | None:
    missing = [name for name in ("labels", "row_query", "row_split") if name not in arrays]
    if missing or ("trials" in arrays) != ("succ" in arrays):
        absent = missing or [name for name in ("trials", "succ") if name not in arrays]
        problems.add(f"labels.npz has no array {', '.join(absent)} (got {shorten(', '.join(arrays))}).")
        return None
    row_query, row_split = arrays["row_query"], arrays["row_split"]
    expected = {
        **dict.fromkeys(("row_query", "row_split"), (len(row_query),)),
        **dict.fromkeys(("labels", "trials", "succ"), (len(row_query), shape.num_prompts)),
    }
    for name, wanted in expected.items():
        found = arrays.get(name, np.empty(wanted, dtype=np.int8))
        if found.shape != wanted or found.dtype.kind not in "biuf":
            problems.add(f"{name} in labels.npz is {found.shape} of {found.dtype}, expected numbers of {wanted}.")
            return None
    _check_range(row_query, shape.num_queries, "row_query in labels.npz", problems)
    _check_range(row_split, len(_SIDES), "row_split in labels.npz", problems)
    labels = read_answers(arrays["labels"], absent=-1)
    if isinstance(labels, str):
        problems.add(f"labels.npz: {labels}.")
        return None
    trials, right = arrays.get("trials", labels >= 0), arrays.get("succ", labels == 1)
    _check_draws(labels, trials.astype(np.int64), right.astype(np.int64), problems=problems)
    problems.check()
    return _Counts(
        rows=np.arange(len(row_query)),
        query_ids=row_query.astype(np.int32),
        splits=np.array(_SIDES, dtype=np.int8)[row_split.astype(np.intp)],
        num_trials=trials.astype(np.int32),
        num_right=right.astype(np.int32),
    )


def _check_draws(
    labels: NDArray[np.int8], trials: NDArray[np.int64], right: NDArray[np.int64], *, problems: Problems
) -> None:
    wrong = (right < 0) | (right > trials)
    if wrong.any():
        row, prompt = np.argwhere(wrong)[0]
        problems.add(
            f"labels.npz: row {row}, prompt {prompt}: {right[row, prompt]} of {trials[row, prompt]} trials are right."
        )
    unlike = (labels >= 0) != (trials > 0)
    if unlike.any():
        row, prompt = np.argwhere(unlike)[0]
        problems.add(
            f"labels.npz: {int(unlike.sum())} labels do not fit their number of trials (row {row}, prompt {prompt}: "
            f"label {labels[row, prompt]}, {trials[row, prompt]} trials)."
        )


def _count_parquet(path: Path, shape: _Shape, problems: Problems) -> _Counts | None:
    columns = _read_columns(path)
    sides: dict[str, int] = {SPLITS[number]: number for number in _SIDES}
    unknown = sorted({str(one) for one in columns["split"]} - set(sides))
    if unknown:
        problems.add(f"{path.name}: split {shorten(repr(unknown[0]))}, expected train or test.")
    right = read_answers(columns["correct"])
    if isinstance(right, str):
        problems.add(f"{path.name}: {right}.")
    for name, limit in (("query", shape.num_queries), ("prompt", shape.num_prompts), ("row", None)):
        _check_range(columns[name], limit, f"{name} in {path.name}", problems)
    problems.check()
    rows, first, line = np.unique(columns["row"].astype(np.int64), return_index=True, return_inverse=True)
    query, split = columns["query"].astype(np.int32), np.array([sides[str(one)] for one in columns["split"]], np.int8)
    unlike = (query != query[first][line]) | (split != split[first][line])
    if unlike.any():
        problems.add(f"{path.name}: row {rows[line[unlike.argmax()]]} stands for more than one query or side.")
    num_trials, num_right = np.zeros((2, len(rows), shape.num_prompts), dtype=np.int32)
    np.add.at(num_trials, (line, columns["prompt"].astype(np.intp)), 1)
    np.add.at(num_right, (line, columns["prompt"].astype(np.intp)), right)
    return _Counts(rows, query[first], split[first], num_trials, num_right)


def _read_columns(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"Parquet needs the extra `oirl`. Run: {tell_install('oirl')}.") from error
    try:
        table = parquet.read_table(path)
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise DemonstrationsError(f"{path}: no column {', '.join(missing)} (got {', '.join(table.column_names)}).")
        return {name: np.asarray(table.column(name).to_numpy()) for name in _COLUMNS}
    except (OSError, pa.ArrowException) as error:
        raise DemonstrationsError(f"{path} cannot be read as Parquet: {shorten(str(error))}") from error


def _read_confidences(path: Path, counts: _Counts, problems: Problems) -> NDArray[np.float32]:
    """Return the self-critic's confidence, NaN where it was not asked."""
    confidences = np.full(counts.num_trials.shape, np.nan, dtype=np.float32)
    if not path.is_file():
        return confidences
    arrays = load_arrays(path)
    missing = [name for name in ("rows", "confidence") if name not in arrays]
    if missing:
        problems.add(f"{path.name} has no array {', '.join(missing)} (got {shorten(', '.join(arrays))}).")
        return confidences
    rows, given = arrays["rows"], arrays["confidence"]
    wanted = (len(rows), counts.num_trials.shape[1])
    if given.shape != wanted or given.dtype.kind not in "iuf":
        problems.add(f"confidence in {path.name} is {given.shape} of {given.dtype}, expected numbers of {wanted}.")
    elif not np.isin(rows, counts.rows).all():
        problems.add(f"{path.name}: row {rows[~np.isin(rows, counts.rows)][0]} is not among the labels.")
    else:
        check_confidences(given, path.name, problems)
        confidences[np.searchsorted(counts.rows, rows)] = given
    return confidences


def _check_range(numbers: NDArray[np.generic], limit: int | None, place: str, problems: Problems) -> None:
    """Note where a number names nothing that there is."""
    is_known = np.zeros(len(numbers), dtype=bool)
    if numbers.dtype.kind in "iu":
        is_known = (numbers >= 0) & (numbers < limit) if limit is not None else numbers >= 0  # type: ignore[operator]
    if not is_known.all():
        wanted = "whole numbers" if limit is None else f"0 to {limit - 1}"
        problems.add(f"{place}: {numbers[~is_known][0]!s}, expected {wanted}.")
