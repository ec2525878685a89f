"""Text files as editors and spreadsheets save them: a byte-order mark says how, and is no part of the text."""

import codecs
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, TextIO

_UTF8 = "utf-8-sig"
"""With a mark or without one."""
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_ENCODINGS_BY_MARK = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def to_utf8(data: bytes) -> bytes:
    """Return a text file's bytes as UTF-8 without a byte-order mark; without a mark they are what they were.

    Raises:
        UnicodeDecodeError: what follows the mark of another encoding is not in it.
    """
    encoding = _find_encoding(data)
    return data.removeprefix(codecs.BOM_UTF8) if encoding == _UTF8 else data.decode(encoding).encode("utf-8")


def read_text(path: Path) -> str:
    """Return the text in a file: UTF-8, or what its byte-order mark says; every kind of line end reads as a newline.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is neither UTF-8 nor what its mark says.
    """
    return _decode(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, or what comes through a pipe.

    Raises:
        OSError: it cannot be read, or is a device that may never end, such as ``/dev/zero``.
    """
    with _open_bytes(path) as file:
        return file.read()


def read_stream(stream: TextIO) -> str:
    """Return what a stream, such as standard input, still holds, read as a file's text is.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor what its mark says.
    """
    buffer = getattr(stream, "buffer", None)
    return stream.read().removeprefix("\ufeff") if buffer is None else _decode(buffer.read())


def open_text(path: Path, *, newline: str | None = None) -> TextIO:
    """Return a text file to be read in pieces, which is decoded as :func:`read_text` does.

    Raises:
        OSError: it cannot be read.
    """
    with _open_bytes(path) as file:
        encoding = _find_encoding(file.read(4))
    return path.open(encoding=encoding, newline=newline)


def _open_bytes(path: Path) -> BinaryIO:
    file = path.open("rb")
    mode = os.fstat(file.fileno()).st_mode
    # A terminal has an end, and so has the device that is empty.
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty() and not path.samefile(os.devnull)):
        file.close()
        raise OSError(errno.EINVAL, "it is a device, and no file", str(path))
    return file


def _decode(data: bytes) -> str:
    return to_utf8(data).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def _find_encoding(beginning: bytes) -> str:
    return next((encoding for mark, encoding in _ENCODINGS_BY_MARK.items() if beginning.startswith(mark)), _UTF8)
