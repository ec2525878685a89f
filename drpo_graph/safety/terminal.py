"""Model text made harmless for a terminal: no escape sequence, control character or bidi override survives."""

import re

from drpo_graph.safety.texts import UNSAFE_IN_JSON, clean_surrogates, is_unseen

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC: window titles, links, clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]"  # two-character escapes
)
_BREAKS = re.compile(r"[\t\n\r\v\f\x1c-\x1f\x85\u2028\u2029]+")
_LINE_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_BEGUN = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*"
# A carriage return waits for the line feed that makes one break with it, across what goes between them.
_UNFINISHED = re.compile(rf"(?P<unfinished>\r(?:{_ESCAPES.pattern})*(?:{_BEGUN})?|{_BEGUN})\Z|{_ESCAPES.pattern}")
_MAX_HELD = 4096
# Escapes and stripped characters take room in the raw text; beyond this factor only a hostile text is cut too short.
_RAW_FACTOR = 8


def inert(text: str, *, max_chars: int) -> str:
    """Return the text as one line that a terminal shows and does not obey, cut to ``max_chars`` with an ellipsis.

    Escape sequences go, line breaks and tabs become a space, control and format characters (C0, C1, bidi overrides,
    zero-width ones) go, and lone surrogates, which no stream can write, become U+FFFD.
    """
    raw = text[: max_chars * _RAW_FACTOR]
    spaced = _BREAKS.sub(" ", _ESCAPES.sub("", raw))
    clean = "".join(map(_shown, spaced)).strip()
    if len(clean) <= max_chars and len(raw) == len(text):
        return clean
    return clean[: max(max_chars - 1, 0)].rstrip() + "…"


def inert_block(text: str, *, max_chars: int) -> str:
    """Return the text as inert lines: its own line breaks and indentation stay, everything else as in :func:`inert`."""
    lines = []
    for line in _LINE_BREAKS.split(text[:max_chars]):
        body = line.expandtabs(4)
        indent = len(body) - len(body.lstrip(" "))
        lines.append(" " * indent + inert(body, max_chars=max_chars))
    return "\n".join(lines).strip("\n")


def inert_json(line: str) -> str:
    """Return JSON with the characters escaped that a terminal would obey or hide; it says the same to a program."""
    return UNSAFE_IN_JSON.sub(_escape, line)


class InertStream:
    """Makes a text inert that comes in pieces: its line breaks stay, and so does all else that a terminal shows."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return what can be shown by now: the beginning of an escape sequence waits for its end."""
        text = self._held + piece
        # A whole sequence is passed over: a carriage return inside it waits for nothing.
        unfinished = next((match for match in _UNFINISHED.finditer(text) if match["unfinished"]), None)
        place = unfinished.start() if unfinished and len(unfinished[0]) <= _MAX_HELD else len(text)
        self._held = text[place:]
        return _show_lines(text[:place])

    def end(self) -> str:
        """Return what was still held back and can be shown."""
        held, self._held = self._held, ""
        return _show_lines(held)


def _show_lines(text: str) -> str:
    lines = _LINE_BREAKS.split(_ESCAPES.sub("", text))
    return "\n".join("".join(map(_shown, line.replace("\t", "    "))) for line in lines)


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[place] << 8 | units[place + 1]:04x}" for place in range(0, len(units), 2))


def _shown(char: str) -> str:
    if " " <= char <= "~":
        return char
    return "" if is_unseen(char) else clean_surrogates(char)
