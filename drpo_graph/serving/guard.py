"""Run a command in a process group of its own, and end the whole group when told to, or when the caller is gone.

A script of the standard library alone, started by path: ``python -I -S guard.py GRACE_S COMMAND...``. Standard input is
a pipe that nobody writes to: its end says that the caller wants the group to stop, or has died, however it died.
Standard output carries two lines: the group's id, and how the command ended, as soon as it has.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_LEFTOVERS_S = 2.0
"""What the command left behind may take this long to end."""
_LOOK_S = 0.1


class Group:
    """The command and everything it has started."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
        self.id = self._process.pid
        self.code: int | None = None
        """How the command ended: an exit code, or the negated number of a signal."""

    def reap(self) -> None:
        """Take note of every process that has ended, the orphans among them too."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.id:
                    self.code = self._process.returncode = os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> bool:
        """Send a signal to the group; return whether there still is one."""
        try:
            os.killpg(self.id, number)
        except (ProcessLookupError, PermissionError):  # The latter from macOS, where only zombies are left.
            return False
        return True

    def end(self, wake: int, *, grace_s: float) -> None:
        """Ask the group to end, and kill what is still there after the time of grace."""
        self.send(signal.SIGTERM)
        self._wait(wake, grace_s, until_command=True)
        if self.code is not None:
            self._wait(wake, _LEFTOVERS_S)
        if self._is_alive():
            self.send(signal.SIGKILL)
        self._wait(wake, _LEFTOVERS_S)

    def _wait(self, wake: int, seconds: float, *, until_command: bool = False) -> None:
        """Wait for the end of all, or of the command alone."""
        deadline = time.monotonic() + seconds
        while self._is_alive() and time.monotonic() < deadline and not (until_command and self.code is not None):
            ready, _, _ = select.select([wake], [], [], _LOOK_S)
            _drain(wake, ready)

    def _is_alive(self) -> bool:
        self.reap()
        return self.send(0)


def main(arguments: list[str]) -> None:
    """Run the command and report its end."""
    wake = _catch_signals()
    _adopt_orphans()
    group = Group(arguments[1:])
    _tell(str(group.id))
    is_wanted = True
    while is_wanted and group.code is None:
        ready, _, _ = select.select([0, wake], [], [])
        _drain(wake, ready)
        is_wanted = 0 not in ready
        group.reap()
    has_ended = group.code is not None
    if has_ended:
        _tell(str(group.code))
    group.end(wake, grace_s=float(arguments[0]))
    if not has_ended:
        _tell(str(group.code))


def _catch_signals() -> int:
    """Return a descriptor that is readable after each signal; none of them ends this process."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Handlers, not SIG_IGN: the command would inherit that.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader


def _adopt_orphans() -> None:
    """Become the parent of what the command leaves behind, so that it is known when all of it has ended: on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _drain(wake: int, ready: list[int]) -> None:
    if wake in ready:
        os.read(wake, 4096)


def _tell(line: str) -> None:
    # The caller may be gone: then nobody wants to know.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
