"""Which process holds a run, and whether it is known to be gone: on the same machine, and where the system tells."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = "/proc/self/ns/pid"


class Process(NamedTuple):
    """A process, as it is found again."""

    host: str
    pid: int
    identity: str | None
    """The boot, the space of process ids and the start time; ``None`` where the system does not tell."""


def this_process() -> Process:
    """Return the process that asks."""
    return Process(socket.gethostname(), os.getpid(), _identify(os.getpid()))


def is_gone(process: Process) -> bool:
    """Return whether a process is known to have ended; one on another machine, or in another container, never is."""
    own = this_process()
    if process.identity is None or own.identity is None or _place(process.identity) != _place(own.identity):
        return False
    return _identify(process.pid) != process.identity


def _place(identity: str) -> str:
    return identity.rpartition("/")[0]


def _identify(pid: int) -> str | None:
    """Return what makes a process's id its own, with an empty start time when there is no such process."""
    try:
        place = f"{_BOOT.read_text().strip()}/{os.readlink(_PIDS)}"
    except OSError:
        return None
    try:
        # After the name, which stands in parentheses and may hold anything: the state, and 19 fields on the start time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{place}/"
    # A zombie has ended, and waits only for its parent to hear of it.
    return f"{place}/{'' if fields[0] in 'ZX' else fields[19]}"
