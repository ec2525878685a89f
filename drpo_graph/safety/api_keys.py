"""Keys where they should not be: in what is stored, or with something pasted beside them that no request can carry."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from drpo_graph.safety.redaction import list_known_secrets

_NAMES = {"\r": "a carriage return", "\n": "a line end", "\t": "a tab", " ": "a space"}

_MIN_CHARS = 12
# What stands for a key where none is needed (`not-needed`, `sk-no-key-required`) is a word, which prompts may hold.
_LIKE_KEY = re.compile(r"(?=.*\d)(?=.*[A-Za-z])\S+")
# Names have such beginnings too (`sk-experiment-12`), but no such rows of letters and digits.
_KEY_FORM = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|gsk|xai|pplx|nvapi|hf|ghp|gho|r8|glpat)[-_](?:[A-Za-z0-9]{1,12}[-_]){0,3}"
    r"(?=[A-Za-z0-9]*\d[A-Za-z]*\d)(?=[A-Za-z0-9]*[A-Za-z][0-9]*[A-Za-z])[A-Za-z0-9]{12,}|AIza[\w-]{20,}|AKIA[0-9A-Z]{12,})"
)


class KeyFinder:
    """Finds keys in what is about to be stored; made anew for each look, as the environment may change."""

    def __init__(self) -> None:
        known = list_known_secrets().items()
        self._words_by_key = {key: words for key, words in known if len(key) >= _MIN_CHARS and _LIKE_KEY.fullmatch(key)}

    def find(self, text: str, *, is_name: bool = False) -> str:
        """Return which key a text holds, in words that give nothing of it away; empty where it holds none.

        Args:
            text: What is looked through for keys in use: a prompt may speak of keys, and show one that is none.
            is_name: Whether it is a name, which has no reason to look like a key either.
        """
        for key, words in self._words_by_key.items():
            if key in text:
                return words
        return "what looks like a key" if is_name and _KEY_FORM.search(text) else ""

    def find_in(self, value: object, *, place: str, names: re.Pattern[str]) -> tuple[str, str] | None:
        """Return where a JSON value holds a key, and which; of the places that the pattern matches, texts are names."""
        for found_at, text in _walk(value, place):
            if words := self.find(text, is_name=names.search(found_at) is not None):
                return found_at, words
        return None


def _walk(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield each text in a JSON value with its place, names of fields under that of what holds them."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield place, str(name)
            yield from _walk(one, f"{place}.{name}" if place else str(name))
    elif isinstance(value, Sequence):
        for one in value:
            yield from _walk(one, place)


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
