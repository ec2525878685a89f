"""Texts cut to one line, and without what nobody sees in them."""

import re
import unicodedata

_SURROGATES = "\ud800-\udfff"
_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
_SELECTORS = "\ufe00-\ufe0e\U000e0100-\U000e01ef"
_EMOJI_FORM = "\ufe0f"
_MONGOLIAN_FORMS = "\u180b-\u180f"
_JOINERS = "\u200c\u200d"
# DEL and C1 controls, bidi marks, zero-width signs, tags: like fillers and selectors, no part of any writing.
_HIDDEN = (
    f"{_FILLERS}{_SELECTORS}\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\U000e0000-\U000e0fff"
)
_DRAWN_AS_NOTHING = re.compile(f"[{_FILLERS}{_SELECTORS}{_EMOJI_FORM}{_MONGOLIAN_FORMS}]")
UNSAFE_IN_JSON = re.compile(f"[{_HIDDEN}{_MONGOLIAN_FORMS}{_JOINERS}\u2028\u2029]")
"""What a terminal may obey or hide, and JSON may hold as it is."""
# What belongs to a writing stays: the emoji form after an emoji, Mongolian forms, joiners between letters that join.
_UNSEEN = re.compile(
    f"[\x00-\x08\x0b\x0c\x0e-\x1f{_HIDDEN}{_SURROGATES}\u2800\U0001bca0-\U0001bca3\U0001d173-\U0001d17a]"
    "|(?<![\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff])"
    f"{_EMOJI_FORM}(?!\u20e3)|(?<![\u1820-\u18aa])[{_MONGOLIAN_FORMS}]"
)
_JOINING = "[\u0300-\u167f\u1681-\u1fff\u2190-\u2fff\u3001-\ud7ff\ue000-\U000dffff]"
_LONE_JOINERS = re.compile(f"(?<!{_JOINING})[{_JOINERS}]|[{_JOINERS}](?!{_JOINING})")
_LONE_SURROGATES = re.compile(f"[{_SURROGATES}]")


def is_unseen(char: str) -> bool:
    """Return whether a character is a control or format character, a filler or a selector."""
    return unicodedata.category(char) in ("Cc", "Cf") or _DRAWN_AS_NOTHING.match(char) is not None


def strip_unseen(text: str) -> str:
    """Return the text without what a reader does not see and a model obeys: lone surrogates and joiners, too."""
    return _LONE_JOINERS.sub("", _UNSEEN.sub("", text))


def clean_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair, which can be neither stored nor sent."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def shorten(text: str, max_chars: int = 120) -> str:
    """Return the text on one line, cut to a length fit for an error message."""
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 3]}..."
