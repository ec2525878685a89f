"""The texts that published logs name by number alone: queries and prompts, from files of the user's."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from drpo_graph.data.datasets import load_queries
from drpo_graph.errors import DatasetError, DemonstrationsError
from drpo_graph.oirl.published.logs import PublishedPrompt
from drpo_graph.safety.text_files import open_text, read_text
from drpo_graph.safety.texts import shorten

_QUESTION, _NUMBERS = "Question", "Numbers"
_PLACEHOLDER = re.compile(r"number(\d+)")
_TEXT_FIELDS = ("text", "prompt")


class QueryTexts(NamedTuple):
    """Texts of queries, in the order of the logs."""

    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What is odd about them: one line each."""


def read_query_texts(source: Path) -> QueryTexts:
    """Return the texts of queries in the order of the logs.

    Args:
        source: A file that :func:`~drpo_graph.data.datasets.load_queries` reads, or a folder of ``fold*/train.csv``,
            which are joined in the order of their numbers. A query that several folds hold stands there as often.

    Raises:
        DemonstrationsError: they cannot be read.
    """
    if source.is_dir():
        return _read_folds(source)
    try:
        return QueryTexts(tuple(query.text for query in load_queries(source)))
    except DatasetError as error:
        raise DemonstrationsError(str(error)) from error


def read_prompt_texts(path: Path) -> tuple[PublishedPrompt, ...]:
    """Return the prompts of a file, in order of their ``index`` where they have one; the name may be empty.

    Args:
        path: A JSON list of texts, or of objects with ``text`` or ``prompt`` and, if wanted, ``name`` and ``index``.

    Raises:
        DemonstrationsError: it cannot be read.
    """
    values = read_json(path)
    if not isinstance(values, list) or not values:
        raise DemonstrationsError(f"{path}: expected a JSON list of prompts, got {shorten(repr(values), 60)}.")
    by_index: dict[int, PublishedPrompt] = {}
    for place, value in enumerate(values):
        fields = {"text": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
        text = next((fields[name] for name in _TEXT_FIELDS if name in fields), None)
        index, name = fields.get("index", place), fields.get("name") or ""
        if not isinstance(text, str) or not text.strip() or not isinstance(name, str):
            raise DemonstrationsError(f"{path}, prompt {place + 1}: expected a text, or an object with 'text'.")
        if not isinstance(index, int) or index in by_index or not 0 <= index < len(values):
            raise DemonstrationsError(
                f"{path}, prompt {place + 1}: index {index!r}, expected each of 0 to {len(values) - 1} once."
            )
        by_index[index] = PublishedPrompt(name, text)
    return tuple(by_index[index] for index in range(len(values)))


def read_json(path: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        DemonstrationsError: it cannot be read.
    """
    try:
        value: object = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DemonstrationsError(f"{path} cannot be read as UTF-8 JSON ({shorten(str(error))}).") from error
    return value


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key by which numbers in names sort as numbers do: fold2 before fold10."""
    return tuple((0, int(one), "") if one.isdecimal() else (1, 0, one) for one in re.split(r"(\d+)", name) if one)


def _read_folds(folder: Path) -> QueryTexts:
    folds = sorted(folder.glob("fold*/train.csv"), key=lambda path: natural_order(path.parent.name))
    if not folds:
        raise DemonstrationsError(f"{folder} holds no fold*/train.csv: give a file of queries, or such a folder.")
    texts: list[str] = []
    open_places: list[str] = []
    for path in folds:
        for place, question, numbers in _read_rows(path):
            text = _fill(question, numbers)
            if _PLACEHOLDER.search(text):
                open_places.append(place)
            texts.append(text)
    notes = (
        (f"{len(open_places)} questions have a placeholder without a number, left as it is (first: {open_places[0]}).",)
        if open_places
        else ()
    )
    return QueryTexts(tuple(texts), notes)


def _fill(question: str, numbers: Sequence[str]) -> str:
    """Return the question with its numbers, the first one in the place of ``number0``."""
    return _PLACEHOLDER.sub(lambda found: next(iter(numbers[int(found[1]) :]), found[0]), question)


def _read_rows(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each row's place, question and numbers."""
    try:
        with open_text(path, newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in (_QUESTION, _NUMBERS) if name not in (reader.fieldnames or ())]
            if missing:
                raise DemonstrationsError(f"{path}: no column {', '.join(missing)}.")
            for row in reader:
                question = row[_QUESTION]
                if not (question or "").strip():
                    raise DemonstrationsError(f"{path}:{reader.line_num}: the question is blank.")
                yield f"{path}:{reader.line_num}", question, (row[_NUMBERS] or "").split()
    except (OSError, ValueError, csv.Error) as error:
        raise DemonstrationsError(f"{path} cannot be read as UTF-8 CSV ({shorten(str(error))}).") from error
