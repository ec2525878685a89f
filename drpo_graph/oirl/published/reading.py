"""Tell published logs apart by what lies in their folder, and read them."""

from pathlib import Path

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.published.labels import LABEL_FILES, read_labels
from drpo_graph.oirl.published.logs import PublishedLogs
from drpo_graph.oirl.published.release import find_release_tasks, read_release


def read_published(
    folder: Path,
    *,
    queries: Path | None = None,
    task: str | None = None,
    prompts: Path | None = None,
    model: str = "",
) -> PublishedLogs:
    """Return the demonstrations in published logs of Prompt-OIRL (Section 4), and what of them was left out.

    Args:
        folder: One task's labels (``labels.npz`` or ``labels.parquet``, ``queries.jsonl``, ``prompts.json`` and, if
            there is one, ``critics.npz``), a folder of such folders, or a copy of the published repository.
        queries: The queries' texts in the logs' order, those of the training side first: a dataset file, or a folder
            of ``fold*/train.csv``. The repository has none; beside labels, they stand in place of ``queries.jsonl``.
        task: Which of several tasks is meant.
        prompts: A JSON list of prompts. The repository has no texts of those that were held out of training; beside
            labels, they stand in place of ``prompts.json``.
        model: Who answered; where it is empty, the repository's rows say that Llama 2 did, and others nothing.

    Raises:
        DemonstrationsError: the folder has no such logs, or several tasks; a file cannot be read, or does not fit the
            others: one line for each.
    """
    if not folder.is_dir():
        raise DemonstrationsError(f"{folder} is no folder: name one with published logs.")
    if _has_labels(folder):
        if task not in (None, folder.resolve().name):
            raise DemonstrationsError(f"{folder} has the labels of one task alone: leave out the task {task!r}.")
        return read_labels(folder, queries=queries, prompts=prompts, model=model)
    label_folders = {one.name: one for one in sorted(folder.iterdir()) if one.is_dir() and _has_labels(one)}
    tasks = (*label_folders, *find_release_tasks(folder))
    chosen = _choose_task(folder, tasks, task)
    if chosen in label_folders:
        return read_labels(label_folders[chosen], queries=queries, prompts=prompts, model=model)
    return read_release(folder, chosen, queries=queries, prompts=prompts, model=model)


def holds_published(folder: Path) -> bool:
    """Return whether a folder holds published logs, in whatever layout."""
    if not folder.is_dir():
        return False
    is_labels = any(_has_labels(one) for one in (folder, *folder.iterdir()) if one.is_dir())
    return is_labels or bool(find_release_tasks(folder))


def _has_labels(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LABEL_FILES)


def _choose_task(folder: Path, tasks: tuple[str, ...], task: str | None) -> str:
    if not tasks:
        raise DemonstrationsError(
            f"{folder} has no published logs: expected {' or '.join(LABEL_FILES)} in it, or LMllama2/TASK_names.json."
        )
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        told = "which of them is meant" if task is None else f"one of them, not {task!r}"
        raise DemonstrationsError(f"{folder} has the tasks {', '.join(tasks)}: name {told}.")
    return task
