"""Demonstrations: what prompts did on queries, as one table in memory, with every text held once."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.safety.texts import clean_surrogates, shorten

Split = Literal["train", "test", ""]
SPLITS: Final[tuple[Split, ...]] = ("", "train", "test")
"""As the table numbers them; the first is a row whose side nobody has said."""

COLUMNS: Final = ("query", "prompt", "outcome", "model", "split", "tokens", "prompt_name", "confidence")
REQUIRED_COLUMNS: Final = COLUMNS[:3]
BATCH_ROWS: Final = 65_536
_MOST: Final = float(np.finfo(np.float32).max)


class Demonstration(NamedTuple):
    """One trial: a prompt was tried on a query."""

    query: str
    prompt: str
    outcome: float
    """From 0, wrong, to 1, right."""
    model: str = ""
    """Who answered."""
    split: Split = ""
    tokens: float | None = None
    """What the call cost, in tokens; ``None`` where nobody counted."""
    prompt_name: str = ""
    """A short label for tables."""
    confidence: float | None = None
    """What the model itself said of its answer when asked, from 0 to 1; ``None`` where nobody asked."""


class OutcomeGrid(NamedTuple):
    """Outcomes by query and prompt, both as numbered in their table."""

    mean: NDArray[np.float32]
    """``(num_queries, num_prompts)``; the mean over repeated trials, NaN where the pair was never tried."""
    num_trials: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Demonstrations:
    """A table of trials, one numpy array a column; texts are numbered by first appearance and stand once.

    A million rows take some 25 MB beside their texts.
    """

    queries: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_names: tuple[str, ...]
    """One per prompt; a shortened text where nobody gave a name."""
    models: tuple[str, ...]
    query_ids: NDArray[np.int32]
    """Per row, the place in ``queries``; the next two likewise."""
    prompt_ids: NDArray[np.int32]
    model_ids: NDArray[np.int32]
    outcomes: NDArray[np.float32]
    splits: NDArray[np.int8]
    """Per row, the place in ``SPLITS``."""
    tokens: NDArray[np.float32]
    """NaN where nobody counted."""
    confidences: NDArray[np.float32]
    """NaN where nobody asked."""

    @classmethod
    def from_rows(cls, rows: Iterable[Demonstration]) -> "Demonstrations":
        """Return the table of some trials.

        Raises:
            DemonstrationsError: there is none, or one cannot be used.
        """
        builder, waiting = TableBuilder(), iter(rows)
        while batch := list(islice(waiting, BATCH_ROWS)):
            builder.add(list(zip(*batch, strict=True)))
        return builder.finish()

    def __len__(self) -> int:
        return len(self.outcomes)

    def __iter__(self) -> Iterator[Demonstration]:
        for row in range(len(self)):
            prompt = int(self.prompt_ids[row])
            tokens, confidence = float(self.tokens[row]), float(self.confidences[row])
            yield Demonstration(
                query=self.queries[self.query_ids[row]],
                prompt=self.prompts[prompt],
                outcome=float(self.outcomes[row]),
                model=self.models[self.model_ids[row]],
                split=SPLITS[self.splits[row]],
                tokens=None if np.isnan(tokens) else tokens,
                prompt_name=self.prompt_names[prompt],
                confidence=None if np.isnan(confidence) else confidence,
            )

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Demonstrations":
        """Return some of the rows, by mask or number; queries and prompts keep their numbers."""
        columns = ("query_ids", "prompt_ids", "model_ids", "outcomes", "splits", "tokens", "confidences")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def without_unused(self) -> "Demonstrations":
        """Return the table without the queries, prompts and models that no row names, numbered anew."""
        kept = {name: np.unique(getattr(self, name)) for name in ("query_ids", "prompt_ids", "model_ids")}
        numbers = {name: np.searchsorted(used, getattr(self, name)).astype(np.int32) for name, used in kept.items()}
        return replace(
            self,
            queries=tuple(self.queries[one] for one in kept["query_ids"]),
            prompts=tuple(self.prompts[one] for one in kept["prompt_ids"]),
            prompt_names=tuple(self.prompt_names[one] for one in kept["prompt_ids"]),
            models=tuple(self.models[one] for one in kept["model_ids"]),
            **numbers,
        )

    def with_splits(self, splits: NDArray[np.int8]) -> "Demonstrations":
        """Return the table with other sides, one per row."""
        return replace(self, splits=splits)

    def is_in(self, split: Split) -> NDArray[np.bool_]:
        """Return which rows are on a side."""
        rows: NDArray[np.bool_] = self.splits == SPLITS.index(split)
        return rows

    def grid(self) -> OutcomeGrid:
        """Return mean outcomes by query and prompt."""
        shape = (len(self.queries), len(self.prompts))
        pair = self.query_ids.astype(np.int64) * shape[1] + self.prompt_ids
        size = shape[0] * shape[1]
        num_trials = np.bincount(pair, minlength=size).reshape(shape).astype(np.int32)
        total = np.bincount(pair, weights=self.outcomes, minlength=size).reshape(shape)
        mean = np.full(shape, np.nan, dtype=np.float32)
        np.divide(total, num_trials, out=mean, where=num_trials > 0, casting="same_kind")
        return OutcomeGrid(mean, num_trials)

    def digest(self) -> str:
        """Return a hash of all that is in the table; the order of rows counts."""
        total = hashlib.sha256()
        for texts in (self.queries, self.prompts, self.prompt_names, self.models):
            total.update(f"{len(texts)} ".encode())
            for text in texts:
                content = text.encode("utf-8", "surrogatepass")
                total.update(f"{len(content)} ".encode() + content)
        ids = (self.query_ids, self.prompt_ids, self.model_ids)
        for column in (*ids, self.outcomes, self.splits, self.tokens, self.confidences):
            total.update(np.ascontiguousarray(column).tobytes())
        return total.hexdigest()


class _Numbering:
    """Numbers texts by first appearance."""

    def __init__(self) -> None:
        self.number_by_text: dict[str, int] = {}

    def number(self, texts: Iterable[str]) -> list[int]:
        return [self._number(text) for text in texts]

    def _number(self, text: str) -> int:
        numbers = self.number_by_text
        known = numbers.get(text)
        # A lone surrogate, which JSON may bring, can be neither embedded nor stored.
        return known if known is not None else numbers.setdefault(clean_surrogates(text), len(numbers))


class TableBuilder:
    """Takes columns batch by batch, checks them, and numbers their texts: only one batch of texts stands twice."""

    def __init__(self) -> None:
        self._queries, self._prompts, self._models = _Numbering(), _Numbering(), _Numbering()
        self._names: dict[int, str] = {}
        self._batches: list[list[NDArray[Any]]] = []
        self._num_rows = 0
        self._place, self._num_read = "", 0
        self._row_numbers: Sequence[int] = ()
        """Of the batch in work, as problems name them."""
        self._problems: dict[str, str] = {}
        """The first row of each kind of problem."""

    def begin(self, place: str) -> None:
        """Count the rows that follow from here, which problems name as the place."""
        self._place, self._num_read = f"{place}, ", 0

    def add(self, columns: Sequence[Sequence[object]], *, kept: Sequence[int] | None = None) -> None:
        """Add a batch, its columns in the order of ``COLUMNS``; of its rows those in these places alone, if given."""
        num_read = len(columns[0])
        places = range(num_read) if kept is None else kept
        self._row_numbers = [self._num_read + place + 1 for place in places]
        self._num_read += num_read
        if kept is not None:
            columns = [[column[place] for place in kept] for column in columns]
        query, prompt, outcome, model, split, tokens, name, confidence = columns
        queries, prompts = self._texts(query, "query"), self._texts(prompt, "prompt")
        prompt_ids = self._prompts.number(prompts)
        for number, text in zip(prompt_ids, name, strict=True):
            if text:
                self._names.setdefault(number, clean_surrogates(str(text)))
        self._batches.append(
            [
                np.asarray(self._queries.number(queries), dtype=np.int32),
                np.asarray(prompt_ids, dtype=np.int32),
                np.asarray(self._models.number(str(one or "") for one in model), dtype=np.int32),
                self._numbers(outcome, "outcome", at_most=1.0, is_required=True),
                self._sides(split),
                self._numbers(tokens, "tokens", at_most=_MOST),
                self._numbers(confidence, "confidence", at_most=1.0),
            ]
        )
        self._num_rows += len(queries)

    def finish(self) -> Demonstrations:
        """Return the table.

        Raises:
            DemonstrationsError: nothing was added, or rows cannot be used: one line for each kind of problem.
        """
        if self._problems:
            raise DemonstrationsError("The demonstrations cannot be used:", tuple(self._problems.values()))
        if not self._num_rows:
            raise DemonstrationsError("There are no demonstrations: expected at least one row.")
        prompts = tuple(self._prompts.number_by_text)
        query_ids, prompt_ids, model_ids, outcomes, splits, tokens, confidences = (
            np.concatenate(parts) for parts in zip(*self._batches, strict=True)
        )
        return Demonstrations(
            queries=tuple(self._queries.number_by_text),
            prompts=prompts,
            prompt_names=tuple(self._names.get(number, shorten(text, 40)) for number, text in enumerate(prompts)),
            models=tuple(self._models.number_by_text),
            query_ids=query_ids,
            prompt_ids=prompt_ids,
            model_ids=model_ids,
            outcomes=outcomes,
            splits=splits,
            tokens=tokens,
            confidences=confidences,
        )

    def _note(self, kind: str, place: int, problem: str) -> None:
        self._problems.setdefault(kind, f"{self._place}row {self._row_numbers[place]}: {problem}")

    def _texts(self, values: Sequence[object], column: str) -> list[str]:
        for place, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                what = "is blank" if isinstance(value, str) else f"is {shorten(repr(value))}"
                self._note(column, place, f"the {column} {what}, expected a text")
        return [value if isinstance(value, str) else "" for value in values]

    def _sides(self, values: Sequence[object]) -> NDArray[np.int8]:
        number_by_side: dict[str, int] = {side: number for number, side in enumerate(SPLITS)}
        sides = []
        for place, value in enumerate(values):
            side = value or ""
            number = number_by_side.get(side) if isinstance(side, str) else None
            if number is None:
                self._note("split", place, f"split {shorten(repr(value))}, expected train, test or none")
            sides.append(number or 0)
        return np.asarray(sides, dtype=np.int8)

    def _numbers(
        self, values: Sequence[object], column: str, *, at_most: float, is_required: bool = False
    ) -> NDArray[np.float32]:
        numbers = np.empty(len(values), dtype=np.float32)
        for place, value in enumerate(values):
            if value is None and not is_required:
                numbers[place] = np.nan
                continue
            # A truth value is a number here: right or wrong.
            if isinstance(value, int | float | np.number) and 0 <= value <= at_most:
                numbers[place] = value
            else:
                bounds = "0 on" if at_most == _MOST else f"0 to {at_most:g}"
                self._note(column, place, f"{column} {shorten(repr(value))}, expected a number from {bounds}")
        return numbers
