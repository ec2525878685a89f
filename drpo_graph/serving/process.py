"""Start a server in a process group of its own, wait until it answers, and end the whole group, whatever happens."""

import contextlib
import errno
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drpo_graph.errors import ServeError
from drpo_graph.safety.private_files import open_to_append
from drpo_graph.safety.terminal import inert
from drpo_graph.serving import guard
from drpo_graph.serving.arguments import KEY_VARIABLE, Address
from drpo_graph.serving.explain import explain_failure

STOP_GRACE_S = 20.0
"""How long a server may take to end by itself."""
_GUARD_S = 60.0
"""Longer than a guard takes that does its work."""
_LOOK_S = 0.25
_PROBE_TIMEOUT_S = 2.0
_TAIL_BYTES = 256 * 1024
_TAIL_LINES = 20
_MAX_LINE = 240
_kept_ports: list[socket.socket] = []
"""Sockets that hold the ports found, and neither listen nor are inherited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """All that is needed to start a server."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    """All of it but the key."""
    address: Address
    model: str
    """The name under which it will answer."""
    log_file: Path


class Server:
    """A server that was started; it ends with :meth:`stop`, or with this process."""

    def __init__(self, plan: ServerPlan, process: subprocess.Popen[bytes], *, key: str, log_start: int) -> None:
        self.plan = plan
        self._key = key
        assert process.stdin is not None
        assert process.stdout is not None
        self._guard, self._lifeline, self._voice = process, process.stdin, process.stdout
        self._log_start = log_start
        self._said = b""
        self._is_silent = False
        self._is_stopping = False

    def wait_until_ready(self, *, timeout_s: float, report: Callable[[float, str], None]) -> None:
        """Return when the server answers under its name.

        Args:
            report: Called a few times a second with the seconds passed and the last line of the log; what it raises
                ends the wait.

        Raises:
            ServeError: it ended, took too long, or serves something else.
        """
        began = time.monotonic()
        while self._get("/health") is None or not self._has_model():
            elapsed = time.monotonic() - began
            if elapsed > timeout_s:
                raise self._fail(f"It was not ready after {timeout_s:g} s; --timeout gives it longer.")
            report(elapsed, next(reversed(self._read_lines(max_bytes=4096)), ""))
            self.check(wait_s=_LOOK_S)

    def check(self, *, wait_s: float = 0.0) -> None:
        """Do nothing while the server runs; look for as long as told.

        Raises:
            ServeError: it has ended by itself; the message says why, as far as its log tells.
        """
        if not self._has_ended(wait_s) or self._is_stopping:
            return
        how = _describe_code(self._said.split()[-1].decode()) if self._has_reported() else "its guard was killed"
        reason = explain_failure(self._read_log(), model=self.plan.model, port=self.plan.address.port)
        raise self._fail(reason or f"It ended by itself ({how}); its log may say why.")

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended, as far as its guard has told."""
        return not self._has_ended(0.0)

    def stop(self) -> None:
        """End the server and everything it has started; return when that is done."""
        self._is_stopping = True
        self._lifeline.close()
        try:
            self._guard.wait(_GUARD_S)
        except subprocess.TimeoutExpired:
            self.kill()
        while not self._has_ended(_LOOK_S):
            pass
        if not self._has_reported():
            # The guard was killed before its work was done.
            self.kill()
        self._guard.wait()

    def kill(self) -> None:
        """End the server at once; its guard sees that, and ends too."""
        self._is_stopping = True
        while b"\n" not in self._said and not self._has_ended(_LOOK_S):
            pass
        if b"\n" in self._said:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(self._said.split()[0]), signal.SIGKILL)

    def _has_ended(self, wait_s: float) -> bool:
        """Read what the guard says, waiting for it at most as long as told; return whether it has said its last."""
        deadline = time.monotonic() + wait_s
        while not (self._is_silent or self._has_reported()):
            if not select.select([self._voice], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            said = os.read(self._voice.fileno(), 4096)
            self._said += said
            self._is_silent = not said
        return True

    def _has_reported(self) -> bool:
        """Return whether the guard has said how the server ended, and not just its group."""
        return self._said.count(b"\n") > 1

    def _has_model(self) -> bool:
        answer = self._get("/v1/models", key=self._key)
        if answer is None:
            return False
        try:
            names = [str(model["id"]) for model in json.loads(answer)["data"]]
        except (ValueError, KeyError, TypeError):
            raise self._fail("It does not answer as an OpenAI-compatible server does.") from None
        if self.plan.model not in names:
            raise self._fail(f"It serves {', '.join(names) or 'nothing'}, not {self.plan.model}.")
        return True

    def _get(self, path: str, *, key: str = "") -> bytes | None:
        """Return what the server says, or ``None`` when it says nothing, or no."""
        address = self.plan.address
        # Not urllib: a proxy of the environment has no business between this process and its own server.
        connection = http.client.HTTPConnection(address.own_host, address.port, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            response = connection.getresponse()
            content = response.read()
            return content if response.status == http.client.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _fail(self, reason: str) -> ServeError:
        tail = tuple(self._read_lines()[-_TAIL_LINES:])
        return ServeError(f"The server of {self.plan.model}: {reason} Log: {self.plan.log_file}", tail)

    def _read_lines(self, *, max_bytes: int = _TAIL_BYTES) -> list[str]:
        """Return the lines that are not blank of what the log ends with."""
        lines = self._read_log(max_bytes=max_bytes).replace("\r", "\n").splitlines()
        return [line for one in lines if (line := inert(one, max_chars=_MAX_LINE))]

    def _read_log(self, *, max_bytes: int = _TAIL_BYTES) -> str:
        """Return the end of what this server has written; a log file may hold earlier ones."""
        try:
            with self.plan.log_file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._log_start, size - max_bytes))
                return stream.read().decode("utf-8", "replace")
        except OSError as error:
            return f"(the log cannot be read: {error.strerror})"


def start_server(plan: ServerPlan, key: str, *, grace_s: float = STOP_GRACE_S) -> Server:
    """Start a server that wants a key; it does not answer yet.

    Args:
        grace_s: How long the server may take to end when it is stopped.

    Raises:
        ServeError: its port is taken, or its log cannot be written.
    """
    _check_port(plan.address)
    try:
        descriptor = open_to_append(plan.log_file)
    except OSError as error:
        raise ServeError(f"Log file {plan.log_file}: {error.strerror}. Give another place with --log-file.") from error
    try:
        log_start = os.lseek(descriptor, 0, os.SEEK_END)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(grace_s), *plan.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            # The key is not on the command line: every user of the machine can read that.
            env={**plan.environment, KEY_VARIABLE: key},
            # Away from the terminal's Ctrl-C: a run ends before its server does.
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    return Server(plan, process, key=key, log_start=log_start)


def find_free_port(host: str) -> int:
    """Return a free port; on Linux no other program is given it while this process lives."""
    keeper = socket.socket(_family(host))
    # Linux gives a bound port to nobody who asks for any, and lets a server have it that asks for this one: both sides
    # allow reuse, and only the server listens.
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((host, 0))
    port: int = keeper.getsockname()[1]
    if sys.platform == "linux":
        _kept_ports.append(keeper)
    else:
        keeper.close()
    return port


def _check_port(address: Address) -> None:
    try:
        socket.create_server((address.host, address.port), family=_family(address.host)).close()
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        advice = "Another server listens there: give another --port" if is_taken else "Give another --host or --port"
        raise ServeError(f"Port {address.port} of {address.host}: {error.strerror}. {advice}.") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _describe_code(code: str) -> str:
    if not code.startswith("-"):
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-int(code)).name}"
    return f"killed by signal {code[1:]}"
