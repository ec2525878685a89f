"""A vLLM server for as long as a block lasts: its key, its start, the signals, its end."""

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self, TextIO

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from drpo_graph.cli.serve_request import ServeRequest
from drpo_graph.display.rich_panel import can_show_live
from drpo_graph.display.streams import quiet
from drpo_graph.safety.terminal import inert
from drpo_graph.serving.keys import ServerKey, new_key
from drpo_graph.serving.plan import plan_server
from drpo_graph.serving.process import Server, start_server
from drpo_graph.storage.names import new_thread_id

_SAY_EVERY_S = 10.0
_MAX_LINE = 160
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], object] | int | None


class StopRequests:
    """Counts Ctrl-C and its like, in place of ending at once; one request too many kills the server."""

    def __init__(self, server: Server) -> None:
        self.num = 0
        self.is_stopping = False
        """Whether the server has been told to stop already: then the next request kills it."""
        self._server = server
        self._former: dict[signal.Signals, _Handler] = {}

    def install(self) -> None:
        """Begin to count."""
        for number in _STOP_SIGNALS:
            former = signal.signal(number, self._handle)
            self._former.setdefault(number, former)

    def restore(self) -> None:
        """Leave the signals to whom they belonged before."""
        for number, handler in self._former.items():
            # None: whoever it belonged to did not set it from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.num += 1
        if self.is_stopping or self.num > 1:
            self._server.kill()


class StartProgress:
    """Shows how a start goes: one line that changes on a terminal, a line every ten seconds elsewhere.

    Without a stream it shows nothing.
    """

    def __init__(self, what: str, stream: TextIO | None) -> None:
        self._what = what
        self._stream = quiet(stream) if stream is not None else None
        self._status: Status | None = None
        self._next_s = _SAY_EVERY_S
        if stream is not None and can_show_live(stream):
            console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            self._status = console.status(Text(what))

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        else:
            self._say(self._what)
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, elapsed_s: float, line: str) -> None:
        """Show the seconds passed and the last line of the log."""
        text = f"{self._what}: {elapsed_s:.0f} s" + (f": {line}" if line else "")
        if self._status is not None:
            # Room for the spinner: a line that wraps cannot be redrawn in place.
            self._status.update(Text(inert(text, max_chars=max(20, self._status.console.width - 4)), no_wrap=True))
        elif elapsed_s >= self._next_s:
            self._next_s += _SAY_EVERY_S
            self._say(inert(text, max_chars=_MAX_LINE))

    def _say(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    server: Server
    key: ServerKey
    requests: StopRequests
    started_s: float
    """How long the start took."""


@contextmanager
def run_server(
    request: ServeRequest,
    *,
    folder: Path,
    progress: TextIO | None,
    key: ServerKey | None = None,
    keeps_signals: bool = False,
    withheld: Collection[str] = (),
) -> Iterator[RunningServer]:
    """Start a server, yield it when it answers, and end it whatever happens.

    Args:
        folder: Where log and key go unless the request says.
        key: The key that requests will carry; a new one when absent.
        keeps_signals: Whether requests to stop are counted in the block, too; it has to look at them.
        withheld: Environment variables with keys of others, which the server is not given.

    Raises:
        ServeError: it cannot be started; its log tells why.
        Abort: the user stopped it before it was ready.
    """
    stem = new_thread_id()
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", request.options.model)[-60:].strip("-.")
    flags = request.flags
    log_file = flags.log_file or folder / f"{stem}-{slug}.log"
    own_secrets = {*withheld, flags.api_key_env or ""}
    plan = plan_server(
        request.options, python=flags.python, log_file=log_file, inherited=os.environ, secrets=own_secrets
    )
    with nullcontext(key) if key is not None else new_key(log_file.parent / f"{stem}.key") as chosen:
        began = time.monotonic()
        server = start_server(plan, chosen.value)
        requests = StopRequests(server)
        requests.install()
        try:
            _wait(server, requests, timeout_s=flags.timeout, progress=progress)
            if not keeps_signals:
                requests.restore()
            yield RunningServer(server, chosen, requests, time.monotonic() - began)
        finally:
            requests.install()
            requests.is_stopping = True
            server.stop()
            requests.restore()


def _wait(server: Server, requests: StopRequests, *, timeout_s: float, progress: TextIO | None) -> None:
    what = f"starting {inert(server.plan.model, max_chars=80)}"
    with StartProgress(what, progress) as shown:

        def report(elapsed_s: float, line: str) -> None:
            if requests.num:
                raise typer.Abort
            shown.show(elapsed_s, line)

        server.wait_until_ready(timeout_s=timeout_s, report=report)
