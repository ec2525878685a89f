"""Texts cut to one line, and without halves of surrogate pairs."""

import re

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def clean_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair, which can be neither stored nor sent."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def shorten(text: str, max_chars: int = 120) -> str:
    """Return the text on one line, cut to a length fit for an error message."""
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 3]}..."
