"""Which process holds a run, and whether it is known to be gone: on the same machine, and where the system tells."""

import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from psycopg.rows import class_row

from drpo_graph.storage.postgres.database import Connection

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = "/proc/self/ns/pid"
_SLEW_S = 1.0
"""So much longer than its length a lease may seem to last, by a clock that is being set right."""


class Holding(NamedTuple):
    """A lease as it was found."""

    holder: str
    host: str
    pid: int
    process: str | None
    """What makes the process id its own; ``None`` where the holder's system does not tell."""
    length_s: float
    """How long each renewal made it last."""
    expires_at: datetime
    left_s: float
    """Until it ends; below 0 when it has ended."""

    @property
    def is_live(self) -> bool:
        """Whether the lease goes on, and its holder is not known to have ended."""
        return self.left_s > 0 and not _is_gone(self.pid, self.process)

    @property
    def is_too_long(self) -> bool:
        """Whether the database's clock was set back since the last renewal: it says nothing of when that was."""
        return self.left_s > self.length_s + _SLEW_S


FIND_HOLDING = """
    SELECT holder, host, pid, process, length_s, expires_at,
           extract(epoch FROM expires_at - clock_timestamp())::float AS left_s
    FROM drpo_leases WHERE thread_id = %s
"""
"""Gives a :class:`Holding`."""


async def find_holding(connection: Connection, thread_id: str) -> Holding | None:
    """Return a run's lease as it stands, or ``None`` when there is none."""
    async with connection.cursor(row_factory=class_row(Holding)) as cursor:
        return await (await cursor.execute(FIND_HOLDING, (thread_id,))).fetchone()


async def is_held(connection: Connection, thread_id: str) -> bool:
    """Return whether a process works on a run at this moment."""
    found = await find_holding(connection, thread_id)
    return found is not None and found.is_live


def identify(pid: int) -> str | None:
    """Return what makes a process's id its own: the boot, the space of process ids, and the start time.

    The start time is empty when there is no such process. ``None`` where the system does not tell.
    """
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


def _is_gone(pid: int, identity: str | None) -> bool:
    """Return whether a process is known to have ended; one on another machine, or in another container, never is."""
    own = identify(os.getpid())
    if identity is None or own is None or identity.rpartition("/")[0] != own.rpartition("/")[0]:
        return False
    return identify(pid) != identity
