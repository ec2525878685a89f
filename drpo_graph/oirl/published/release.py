"""The published logs as their repository has them: a file of answers by prompt and side, and no queries."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.published.answers import Answers, read_answer_array, read_answer_lines
from drpo_graph.oirl.published.logs import (
    TEST,
    TRAIN,
    Problems,
    PublishedLogs,
    PublishedPrompt,
    check_confidences,
    list_names,
    load_array,
)
from drpo_graph.oirl.published.texts import natural_order, read_json, read_prompt_texts, read_query_texts
from drpo_graph.safety.texts import shorten

_LABELS, _RESULTS, _CRITICS = "LMllama2", "llama_results", "critics"
_NAMES_SUFFIX = "_names.json"
_KEYS = ("prompts", "training_set", "test_set")
_INFIXES: Final = {TRAIN: "", TEST: "test_"}
_MODEL = "llama-2-7b-chat"


class _Names(NamedTuple):
    """What ``<task>_names.json`` says, one a training prompt."""

    aliases: list[str]
    texts: list[str]
    files_by_side: dict[int, list[Path]]


def find_release_tasks(folder: Path) -> tuple[str, ...]:
    """Return the tasks that a copy of the published repository has labels of."""
    found = sorted((folder / _LABELS).glob(f"*{_NAMES_SUFFIX}"))
    return tuple(path.name.removesuffix(_NAMES_SUFFIX) for path in found)


def read_release(folder: Path, task: str, *, queries: Path | None, prompts: Path | None, model: str) -> PublishedLogs:
    """Return the logs of a task in a copy of the published repository.

    Args:
        queries: The queries' texts in the logs' order, those of the training side first; the release has none.
        prompts: The texts of held-out prompts, of which the release has answers alone; those of others replace its own.

    Raises:
        DemonstrationsError: a file cannot be read, or does not fit the others, or the queries are not given.
    """
    if queries is None:
        raise DemonstrationsError(
            f"{folder} has no texts of queries: name a file of them in the logs' order, those of the training side "
            "first, or the folder whose fold*/train.csv they were read from."
        )
    return _Reader(folder, task, queries=queries).read(prompts, model or _MODEL)


class _Reader:
    """Reads one task, and notes what does not fit."""

    def __init__(self, folder: Path, task: str, *, queries: Path) -> None:
        self._folder, self._task = folder, task
        self._problems = Problems(folder)
        self._texts, notes = read_query_texts(queries)
        self._notes = list(notes)

    def read(self, prompts: Path | None, model: str) -> PublishedLogs:
        names = self._read_names()
        held_out = self._find_held_out(names.aliases)
        train, test = (self._read_side(side, names) for side in (TRAIN, TEST))
        self._problems.check()
        num_train, num_test = (max(len(one.num_trials) for one in side) for side in (train, test))
        test += [read_answer_lines(path, self._problems, num_queries=num_test) for path in held_out.values()]
        shape = (num_train + num_test, len(test))
        num_trials, num_right = np.zeros((2, *shape), dtype=np.int32)
        for side, start, size in ((train, 0, num_train), (test, num_train, num_test)):
            for prompt, answers in enumerate(side):
                self._check_size(answers, size)
                lines = slice(start, start + len(answers.num_trials))
                num_trials[lines, prompt], num_right[lines, prompt] = answers.num_trials, answers.num_right
        confidences = np.full(shape, np.nan, dtype=np.float32)
        self._read_confidences(confidences[num_train:], len(train), held_out=list(held_out))
        self._check_queries(shape[0])
        tried = self._name_prompts(prompts, names, held_out=list(held_out))
        self._problems.check()
        has_text = np.array([bool(one.text) for one in tried])
        return PublishedLogs(
            queries=self._texts[: shape[0]],
            prompts=tuple(one for one in tried if one.text),
            query_ids=np.arange(shape[0], dtype=np.int32),
            splits=np.repeat(np.array([TRAIN, TEST], dtype=np.int8), [num_train, num_test]),
            num_trials=num_trials[:, has_text],
            num_right=num_right[:, has_text],
            confidences=confidences[:, has_text],
            left_out=tuple(self._notes),
            model=model,
        )

    def _read_names(self) -> _Names:
        path = self._folder / _LABELS / f"{self._task}{_NAMES_SUFFIX}"
        given = read_json(path)
        texts, train, test = (
            _check_texts(given.get(key) if isinstance(given, dict) else None, f"{path}: '{key}'") for key in _KEYS
        )
        if not len(texts) == len(train) == len(test):
            raise DemonstrationsError(
                f"{path}: {len(texts)} prompts, {len(train)} files in training_set and {len(test)} in test_set; "
                "expected as many of each."
            )
        # They are named by paths from the repository's top, but stand beside this file: no name leads elsewhere.
        files = {
            side: [path.parent / Path(one).name for one in names] for side, names in ((TRAIN, train), (TEST, test))
        }
        aliases = [one.stem.removeprefix(f"{self._task}_train_") for one in files[TRAIN]]
        if len(set(aliases)) < len(aliases):
            raise DemonstrationsError(f"{path}: training_set names a file twice ({list_names(aliases)}).")
        return _Names(aliases, texts, files)

    def _find_lines(self, alias: str, infix: str) -> Path:
        return self._folder / _RESULTS / self._task / f"llama_{self._task}_{infix}corr_{alias}.txt"

    def _find_held_out(self, training: Sequence[str]) -> dict[str, Path]:
        """Return the files of the prompts that were tried on the test side alone, by alias."""
        pattern = self._find_lines("*", "")
        start = pattern.name.removesuffix("*.txt")
        found = {path.stem.removeprefix(start): path for path in pattern.parent.glob(f"{start}*.txt")}
        return {alias: found[alias] for alias in sorted(found, key=natural_order) if alias not in training}

    def _read_side(self, side: int, names: _Names) -> list[Answers]:
        """Return what the training prompts did on one side."""
        answers = []
        for alias, path in zip(names.aliases, names.files_by_side[side], strict=True):
            lines = self._find_lines(alias, _INFIXES[side])
            if path.is_file():
                answers.append(read_answer_array(path, self._problems))
            # Where lines of both sides are in one file, only the arrays say where the second begins.
            elif self._find_lines(alias, _INFIXES[TEST]).is_file() and lines.is_file():
                answers.append(read_answer_lines(lines, self._problems, num_queries=len(self._texts)))
            else:
                self._problems.add(f"{_LABELS}/{path.name} is missing.")
        return answers

    def _check_size(self, answers: Answers, num_queries: int) -> None:
        num_answered = int((answers.num_trials > 0).sum())
        if num_answered < num_queries:
            told = f"{answers.name} answers {num_answered} of {num_queries} queries"
            if answers.is_numbered:
                self._notes.append(f"{told}: the others have no row with this prompt.")
            else:
                self._problems.add(f"{told}, and does not say which.")
        num_again = int(answers.num_trials.sum()) - num_answered
        if num_again:
            self._notes.append(f"{answers.name} answers {num_again} times again: each answer is a row of its own.")

    def _check_queries(self, num_wanted: int) -> None:
        num_given = len(self._texts)
        if num_given < num_wanted:
            self._problems.add(f"{num_given} texts of queries, and {num_wanted} queries were logged: name all of them.")
        elif num_given > num_wanted:
            self._notes.append(f"{num_given - num_wanted} of {num_given} queries were not logged: the last ones.")

    def _read_confidences(self, found: NDArray[np.float32], num_training: int, *, held_out: Sequence[str]) -> None:
        """Fill in the self-critic's confidence on the test side."""
        place_by_index = dict(enumerate(range(num_training))) | {
            num_training + number: num_training + place for place, number in enumerate(_number_aliases(held_out))
        }
        start, end = f"Processed_llama_{self._task}_prompt_", "_confidence"
        for path in sorted(
            (self._folder / _CRITICS).glob(f"{start}*{end}.npy"), key=lambda one: natural_order(one.name)
        ):
            index = path.stem.removeprefix(start).removesuffix(end)
            place = place_by_index.get(int(index)) if index.isdecimal() else None
            if place is None:
                self._notes.append(f"{path.name} is of a prompt without answers, and is not used.")
                continue
            values = load_array(path)
            if values.shape != (len(found),) or values.dtype.kind not in "iuf":
                self._problems.add(
                    f"{path.name}: {values.shape} of {values.dtype}, expected {len(found)} numbers, one a query."
                )
                continue
            check_confidences(values, path.name, self._problems)
            found[:, place] = values

    def _name_prompts(self, path: Path | None, names: _Names, *, held_out: Sequence[str]) -> list[PublishedPrompt]:
        """Return the prompts, those of which nobody gives the text with an empty one."""
        text_by_alias = dict(zip(names.aliases, names.texts, strict=True))
        aliases = [*names.aliases, *held_out]
        for name, text in self._place_texts(path, aliases, held_out):
            # The release's own list of texts is not in all places what was sent to the model.
            if name in text_by_alias and text_by_alias[name] != text:
                self._notes.append(f"Prompt {name!r} has another text in {self._task}{_NAMES_SUFFIX}: not used.")
            text_by_alias[name] = text
        missing = [alias for alias in aliases if alias not in text_by_alias]
        if missing:
            self._notes.append(
                f"{len(missing)} prompts have answers and no text, and are left out ({list_names(missing)}): name a "
                "file of prompts with their texts."
            )
        return [PublishedPrompt(alias, text_by_alias.get(alias, "")) for alias in aliases]

    def _place_texts(
        self, path: Path | None, aliases: Sequence[str], held_out: Sequence[str]
    ) -> Iterable[PublishedPrompt]:
        """Return the texts that the user gives, by alias: as they are named, else in order."""
        given = read_prompt_texts(path) if path is not None else ()
        if any(one.name for one in given):
            return [one for one in given if one.name in aliases]
        for names in (held_out, aliases):
            if len(given) == len(names):
                return [one._replace(name=name) for one, name in zip(given, names, strict=True)]
        if given:
            self._problems.add(
                f"{path}: {len(given)} texts without names, expected {len(held_out)}, of the held-out prompts, or "
                f"{len(aliases)}, of all."
            )
        return ()


def _check_texts(values: object, place: str) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one.strip() for one in values):
        raise DemonstrationsError(f"{place} is {shorten(repr(values), 60)}, expected a list of texts.")
    return values


def _number_aliases(held_out: Sequence[str]) -> list[int]:
    """Return the numbers that the critics give held-out prompts: those in their names, else by order."""
    found = [re.search(r"(\d+)$", alias) for alias in held_out]
    numbers = [int(one[1]) for one in found if one is not None]
    return numbers if len(set(numbers)) == len(held_out) else list(range(len(held_out)))
