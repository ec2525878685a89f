"""Output that cannot hurt the run: a reader that leaves, or an encoding that lacks a character, is no error."""

import io
import logging
import os
from typing import TextIO, cast

logger = logging.getLogger(__name__)

_ASCII_STAND_INS = str.maketrans({"…": ".", "·": "-", "—": "-", "–": "-", "→": ">", "─": "-", "━": "-", "│": "|"})


class QuietStream(io.TextIOBase):
    """A text stream that goes quiet for good once its reader has left (``| head``) or it was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_quiet = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream behind."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream behind is a terminal."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor behind."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Return True: a quiet stream takes text as well, and drops it."""
        return True

    def write(self, text: str, /) -> int:
        """Write the text; characters that the encoding lacks are replaced. Returns the characters taken."""
        if not self.is_quiet:
            try:
                self._write(text)
            except (OSError, ValueError) as error:
                self._go_quiet(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind; one that is closed has nothing left to flush."""
        if not self.is_quiet and not self._stream.closed:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._go_quiet(error)

    def _write(self, text: str) -> None:
        # Tested first, not caught: stderr escapes what it cannot encode, and a panel of \u2500 is no panel.
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII_STAND_INS).encode(self.encoding, "replace").decode(self.encoding)
        self._stream.write(text)

    def _go_quiet(self, error: OSError | ValueError) -> None:
        self.is_quiet = True
        if isinstance(error, BrokenPipeError):
            self._drop_rest()
        else:
            logger.warning("The display cannot write and goes quiet: %s", error)

    def _drop_rest(self) -> None:
        # What is still buffered would fail again when the interpreter flushes at exit, and turn exit code 0 into 120.
        try:
            with open(os.devnull, "wb") as devnull:
                os.dup2(devnull.fileno(), self._stream.fileno())
        except (OSError, ValueError):
            logger.debug("no file descriptor behind the broken stream")


def quiet(stream: TextIO) -> TextIO:
    """Return the stream wrapped so that writing to it never raises."""
    return cast(TextIO, QuietStream(stream))


def write_lines(stream: TextIO, *lines: str) -> None:
    """Write lines at once; a reader that has left is no error."""
    shown = quiet(stream)
    shown.write("".join(f"{line}\n" for line in lines))
    shown.flush()
