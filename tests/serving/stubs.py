"""What tests of servers share: the stub's place, what it recorded, and whether its processes are still there."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from drpo_graph.serving.process import find_free_port
from tests.support.command import ROOT, wait_for

STUB = Path(__file__).parent / "stub"
PYTHON_PATH = os.pathsep.join((str(STUB), str(ROOT)))


@dataclass(frozen=True)
class Record:
    """What a started stub wrote down."""

    argv: list[str]
    key: str
    pids: list[int]
    """Of the server, of its guard, of its worker if it has one."""
    environment: dict[str, str | None]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.argv[self.argv.index("--port") + 1])


def read_record(path: Path) -> Record:
    """Return the record of a stub, as soon as it is written."""
    wait_for(path.exists)
    return Record(**json.loads(path.read_text()))


def is_running(pid: int) -> bool:
    """Return whether a process is there, and more than an entry that nobody has collected."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def are_gone(record: Record) -> bool:
    """Return whether no process of a stub is left."""
    return not any(is_running(pid) for pid in record.pids)


def command_lines(pids: list[int]) -> str:
    """Return what a process list shows of these processes."""
    return "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)


def environments(pids: list[int]) -> str:
    """Return the variables that these processes were started with."""
    return "\n".join(Path(f"/proc/{pid}/environ").read_text() for pid in pids).replace("\0", "\n")


def free_port() -> int:
    """Return a port that no other test, process or connection is given meanwhile."""
    return find_free_port("127.0.0.1")
