"""Whether a key can stand in a request at all: what was pasted with it is found before anything is sent."""

import unicodedata

_NAMES = {"\r": "a carriage return", "\n": "a line end", "\t": "a tab", " ": "a space"}


def find_unsendable(key: str) -> str:
    """Return what in a key no request can carry, in words that give nothing of the key away; empty where it is fine."""
    for char in key:
        if char in _NAMES:
            return _NAMES[char]
        if not (char.isascii() and char.isprintable()):
            return f"U+{ord(char):04X} ({unicodedata.name(char, 'a control character').lower()})"
    if len(key) > 1 and key[0] in "'\"" and key[-1] == key[0]:
        return "quotes around it"
    return ""
