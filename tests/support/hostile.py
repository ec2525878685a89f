"""Texts that try to be more than text."""

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;owned\x07 \x1b]8;;http://evil\x1b\\link \x9b2J \x1bc "
    "[bold]markup[/bold] [link=http://evil]x[/link] \u202eevil\u202c\u2066\u200b\x00\x07\x08\r\n\n\ttail \ud800 :smile:"
)
FORBIDDEN = ("\x1b", "\x9b", "\x9d", "\x00", "\x07", "\x08", "\r", "\u202e", "\u202c", "\u2066", "\u200b", "\ud800")


def is_inert(text: str) -> bool:
    """Return whether nothing in the text would act on a terminal."""
    return not any(mark in text for mark in FORBIDDEN)
