"""The live panel on a terminal, and the summary after it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from drpo_graph.display.base import Display
from drpo_graph.display.panel import render_panel
from drpo_graph.display.streams import quiet
from drpo_graph.display.summary import print_end
from drpo_graph.display.view import RunView
from drpo_graph.events.schema import CollectionFinished, Event, ICLFinished, RunFinished, RunStopped

REFRESH_PER_SECOND = 8


class RichDisplay(Display):
    """Draws a panel on stderr while the run works, and prints the summary to stdout."""

    def __init__(
        self, *, stdout: TextIO, stderr: TextIO, files: Sequence[Path] = (), commands: Sequence[str] = ()
    ) -> None:
        self._out = _console(stdout)
        self._files, self._commands = tuple(files), tuple(commands)
        self._view = RunView()
        # Live draws on a thread of its own.
        self._lock = threading.Lock()
        self._live = Live(self, console=_console(stderr), refresh_per_second=REFRESH_PER_SECOND, redirect_stdout=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the panel for the present width."""
        with self._lock:
            panel = render_panel(
                self._view,
                now=time.time(),
                width=options.max_width,
                height=console.size.height,
                is_ascii=options.ascii_only or options.legacy_windows,
            )
        yield panel

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def handle(self, event: Event) -> None:
        """Take the event in; when the run has ended, leave the last panel and print what it came to."""
        with self._lock:
            self._view.apply(event)
        if isinstance(event, RunFinished | ICLFinished | CollectionFinished | RunStopped):
            self._live.stop()
            elapsed_s = self._view.elapsed_s(event.time)
            models = self._view.models.values()
            print_end(self._out, event, elapsed_s=elapsed_s, files=self._files, commands=self._commands, models=models)
            self._out.file.flush()

    def stop(self) -> None:
        """Stop drawing; the last panel stays."""
        self._live.stop()


def can_show_live(stream: TextIO) -> bool:
    """Return whether a panel can be redrawn on this stream."""
    console = _console(stream)
    return console.is_terminal and not console.is_dumb_terminal


def _console(stream: TextIO) -> Console:
    return Console(file=quiet(stream), highlight=False, markup=False, emoji=False)
