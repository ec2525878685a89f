"""What a run may be called. Nothing slow is imported here."""

import re
import secrets
import time

from drpo_graph.errors import UsageError
from drpo_graph.safety.api_keys import KeyFinder

_THREAD_ID = re.compile(r"(?!.*\.$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{name}{number}" for name in ("COM", "LPT") for number in range(10))}
"""What Windows takes for a device, with any suffix; a run folder may be copied there."""


def check_thread_id(thread_id: str) -> str:
    """Return a thread id that is fit to name a folder.

    Raises:
        UsageError: it is not.
    """
    if words := KeyFinder().find(thread_id, is_name=True):
        raise UsageError(f"The thread id holds {words}, and it is stored. Give another one.")
    if not _THREAD_ID.fullmatch(thread_id):
        raise UsageError(
            f"Thread id {thread_id!r}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "not ending in '.', 100 at most."
        )
    if thread_id.partition(".")[0].upper() in _DEVICES:
        raise UsageError(f"Thread id {thread_id!r}: on Windows it names a device. Give another one.")
    return thread_id


def new_thread_id() -> str:
    """Return a new run name that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
