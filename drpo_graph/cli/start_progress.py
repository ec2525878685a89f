"""What stderr shows while a server starts: one line that changes on a terminal, a line every ten seconds elsewhere."""

from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from drpo_graph.display.rich_panel import can_show_live
from drpo_graph.display.streams import quiet
from drpo_graph.safety.terminal import inert

_EVERY_S = 10.0
_MAX_PLAIN = 160


class StartProgress:
    """Shows how a start goes; shows nothing when it has no stream."""

    def __init__(self, what: str, stream: TextIO | None) -> None:
        self._what = what
        self._stream = quiet(stream) if stream is not None else None
        self._status: Status | None = None
        self._console: Console | None = None
        self._next_s = _EVERY_S
        if stream is not None and can_show_live(stream):
            self._console = Console(file=quiet(stream), highlight=False, markup=False, emoji=False)
            self._status = self._console.status(Text(what))

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        else:
            self._say(self._what)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, elapsed_s: float, line: str) -> None:
        """Show the seconds passed and the last line of the log."""
        text = f"{self._what}: {elapsed_s:.0f} s" + (f": {line}" if line else "")
        if self._status is not None and self._console is not None:
            # Room for the spinner: a line that wraps cannot be redrawn in place.
            self._status.update(Text(inert(text, max_chars=max(20, self._console.width - 4)), no_wrap=True))
        elif elapsed_s >= self._next_s:
            self._next_s += _EVERY_S
            self._say(inert(text, max_chars=_MAX_PLAIN))

    def _say(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()
