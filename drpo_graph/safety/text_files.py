"""Text files as editors and spreadsheets save them: a byte-order mark says how, and is no part of the text."""

import codecs
from pathlib import Path

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
    for mark, encoding in _ENCODINGS_BY_MARK.items():
        if data.startswith(mark):
            return data.decode(encoding).encode("utf-8")
    return data.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """Return the text in a file: UTF-8, or what its byte-order mark says; every kind of line end reads as a newline.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is neither UTF-8 nor what its mark says.
    """
    return to_utf8(path.read_bytes()).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
