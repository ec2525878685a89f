"""What published logs come down to: how often each prompt was tried on each query, and how often it was right."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import SPLITS, Demonstration
from drpo_graph.safety.texts import shorten

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")
_MAX_PROBLEMS = 20
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and the modules below it raise for files that are damaged, or were made by something else."""


class PublishedPrompt(NamedTuple):
    """A prompt of the logs."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class PublishedLogs:
    """Published logs; iterating them gives their rows, query by query, as often as one likes."""

    queries: tuple[str, ...]
    prompts: tuple[PublishedPrompt, ...]
    query_ids: NDArray[np.int32]
    """Per line of the logs, the place in ``queries``: a query that was logged twice has two lines."""
    splits: NDArray[np.int8]
    """Per line, the place in ``SPLITS``."""
    num_trials: NDArray[np.int32]
    """``(num_lines, num_prompts)``; the next two likewise."""
    num_right: NDArray[np.int32]
    confidences: NDArray[np.float32]
    """The LLM self-critic's, from 0 to 1; NaN where it was not asked."""
    left_out: tuple[str, ...] = ()
    """What the folder has and the rows have not, and why: one line each."""
    model: str = ""

    def __len__(self) -> int:
        return int(self.num_trials.sum())

    def __iter__(self) -> Iterator[Demonstration]:
        for line, prompt in np.argwhere(self.num_trials > 0):
            confidence = float(self.confidences[line, prompt])
            num_right = int(self.num_right[line, prompt])
            for trial in range(int(self.num_trials[line, prompt])):
                yield Demonstration(
                    query=self.queries[self.query_ids[line]],
                    prompt=self.prompts[prompt].text,
                    outcome=float(trial < num_right),
                    model=self.model,
                    split=SPLITS[self.splits[line]],
                    prompt_name=self.prompts[prompt].name,
                    confidence=None if np.isnan(confidence) else confidence,
                )


class Problems:
    """Collects what is wrong with a folder, so that one error names it all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[str] = []

    def add(self, problem: str) -> None:
        """Note a problem: one line."""
        self._lines.append(problem)

    def check(self) -> None:
        """Do nothing where there is no problem.

        Raises:
            DemonstrationsError: there is one.
        """
        if not self._lines:
            return
        shown = self._lines[:_MAX_PROBLEMS]
        if len(self._lines) > len(shown):
            shown.append(f"... and {len(self._lines) - len(shown)} more")
        raise DemonstrationsError(f"The logs in {self._folder} cannot be used:", tuple(shown))


def load_array(path: Path) -> NDArray[np.generic]:
    """Return the array in an ``.npy`` file; a pickled one is refused, as unpickling may run what it names.

    Raises:
        DemonstrationsError: the file cannot be read.
    """
    return load_arrays(path)[""]


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays in an ``.npz`` file by name, or that in an ``.npy`` file under an empty one.

    Raises:
        DemonstrationsError: the file cannot be read.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded as file:
            arrays = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise DemonstrationsError(
            f"{path} cannot be read as NumPy arrays without pickles ({shorten(str(error))})."
        ) from error
    # What is no array in the file comes as bytes.
    foreign = [name for name, one in arrays.items() if not isinstance(one, np.ndarray)]
    if foreign:
        raise DemonstrationsError(f"{path}: {list_names(foreign)} cannot be read as NumPy arrays.")
    return arrays


def read_answers(values: NDArray[np.generic], *, absent: int | None = None) -> NDArray[np.int8] | str:
    """Return right (1) and wrong (0), or what is wrong with the values.

    Args:
        values: Truth values, or numbers.
        absent: The number that stands for no answer, kept as -1.
    """
    if values.dtype.kind not in "biuf":
        return f"labels of the type {values.dtype}, expected truth values or 0 and 1"
    is_known = np.isin(values, [0, 1] if absent is None else [absent, 0, 1])
    if not is_known.all():
        place = tuple(int(one) for one in np.argwhere(~is_known)[0])
        where = ", ".join(map(str, place))
        return f"label {values[place]!s} at {where}, expected right (1) or wrong (0)"
    answers = values.astype(np.int8)
    if absent is not None:
        answers[values == absent] = -1
    return answers


def check_confidences(given: NDArray[np.generic], place: str, problems: Problems) -> None:
    """Note where a confidence is none."""
    values = given.astype(np.float64)
    wrong = ~(np.isnan(values) | ((values >= 0) & (values <= 1)))
    if wrong.any():
        problems.add(f"{place}: confidence {values[wrong][0]:g}, expected a number from 0 to 1.")


def list_names(names: Sequence[str], *, most: int = 6) -> str:
    """Return the first names in a row, and how many more there are."""
    shown = ", ".join(repr(shorten(one, 40)) for one in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
