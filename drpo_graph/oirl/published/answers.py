"""The files of answers of the published repository: arrays of truth values, and lines like ``(0, True)``."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.published.logs import Problems, load_array, read_answers
from drpo_graph.safety.text_files import read_text
from drpo_graph.safety.texts import shorten

_LINE = re.compile(r"\(\s*(\d{1,9})\s*,\s*(True|False)\s*\)")


class Answers(NamedTuple):
    """What one prompt did on the queries of one side, in their order."""

    name: str
    """Of the file."""
    num_trials: NDArray[np.int32]
    num_right: NDArray[np.int32]
    is_numbered: bool
    """Whether the file says which query an answer is to, so that one may lack."""


def read_answer_array(path: Path, problems: Problems) -> Answers:
    """Return the answers in an ``.npy`` file, one a query.

    Raises:
        DemonstrationsError: the file cannot be read.
    """
    answers = read_answers(load_array(path))
    if isinstance(answers, str):
        problems.add(f"{path.name}: {answers}.")
    elif answers.ndim != 1:
        problems.add(f"{path.name}: an array of {answers.ndim} dimensions, expected one answer a query.")
    if isinstance(answers, str) or answers.ndim != 1:
        answers = np.zeros(0, dtype=np.int8)
    return Answers(path.name, np.ones(len(answers), dtype=np.int32), answers.astype(np.int32), is_numbered=False)


def read_answer_lines(path: Path, problems: Problems, *, num_queries: int) -> Answers:
    """Return the answers in a file of lines, which may be in any order; a query that comes again was tried again.

    Args:
        num_queries: How many there are: no line may number another.

    Raises:
        DemonstrationsError: the file cannot be read.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise DemonstrationsError(f"{path} cannot be read as UTF-8 text ({shorten(str(error))}).") from error
    num_trials, num_right = np.zeros((2, num_queries), dtype=np.int32)
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line.strip())
        if found is not None and int(found[1]) < num_queries:
            num_trials[int(found[1])] += 1
            num_right[int(found[1])] += found[2] == "True"
        elif line.strip():
            wanted = "a line like (0, True)" if found is None else f"a query from 0 to {num_queries - 1}"
            problems.add(f"{path.name}:{number}: {shorten(repr(line), 60)}, expected {wanted}.")
            break
    size = int(np.flatnonzero(num_trials).max(initial=-1)) + 1
    return Answers(path.name, num_trials[:size], num_right[:size], is_numbered=True)
