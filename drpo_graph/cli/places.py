"""How commands name the place of runs, and that of prompts."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_graph.errors import UsageError
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import DEFAULT_CHECKPOINT, find_storage
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.sqlite_file import SqliteStorage

if TYPE_CHECKING:
    from drpo_graph.registry import PromptRegistry

DEFAULT_PLACE = str(DEFAULT_CHECKPOINT)
DEFAULT_PROMPTS = Path("drpo_prompts")
"""Not below the runs' folder, where a run of any name has its own."""


def find_place_of(thread_id: str, place: str) -> Storage:
    """Return a place that is meant to hold a run already.

    Raises:
        UsageError: the texts can name no run, or no place.
        CheckpointError: there is nothing.
    """
    check_thread_id(thread_id)
    storage = find_storage(place)
    storage.require()
    return storage


def is_default(storage: Storage) -> bool:
    """Return whether a place needs no naming."""
    return storage == SqliteStorage(DEFAULT_CHECKPOINT)


def name_place(storage: Storage) -> str:
    """Return what a command needs to find a place, e.g. ``" --checkpoint FILE"``; never with a password."""
    return "" if is_default(storage) else f" --checkpoint {shlex.quote(storage.name)}"


def find_place_flag(arguments: Sequence[str]) -> str:
    """Return what :func:`name_place` says of the place that a command line names; nothing where it names none."""
    words = iter(arguments)
    for word in words:
        flag, separator, value = word.partition("=")
        if flag == "--checkpoint":
            with suppress(UsageError):
                return name_place(find_storage(value if separator else next(words, "")))
    return ""


def open_prompts(folder: Path | None) -> "PromptRegistry | None":
    """Return the registry of prompts that is named, else the one at the usual place, or ``None`` where none is there.

    Raises:
        UsageError: the one that is named is not there.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--registry {folder}: there is no such folder. `drpo import` makes one.")
    from drpo_graph.registry import PromptRegistry  # Loads the templates of all prompts.

    chosen = folder or DEFAULT_PROMPTS
    return PromptRegistry(chosen) if chosen.is_dir() else None
