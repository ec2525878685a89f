"""How commands name the place of runs."""

import shlex

from drpo_graph.checkpoint import DEFAULT_CHECKPOINT, SqliteStorage, check_thread_id, find_storage
from drpo_graph.storage import RUNS_FOLDER, Storage

DEFAULT_PLACE = str(DEFAULT_CHECKPOINT)
DEFAULT_PROMPTS = RUNS_FOLDER / "prompts"


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
