"""Texts from outside made unable to pose as a part of a request: fenced, and without what looks like a delimiter.

Models read `<|im_start|>`, `[INST]`, our own headings and our own tags as structure, and some servers' tokenizers do,
too. In a text that is only material such look-alikes are shown in other brackets. What else a text says stays as it is,
so that equal texts still give equal requests and a shared beginning stays shared.
"""

import hashlib
import re
import unicodedata
from itertools import count
from typing import Final

LABELS: Final = ("query", "answer", "prompt", "remarks", "metrics", "reasoning")
"""What our fences are called."""

_ANGLES = "<‹˂≺❮⟨〈〈＜﹤ᐸ⧼", ">›˃≻❯⟩〉〉＞﹥ᐳ⧽"
_SQUARES = "[［⟦【〔", "]］⟧】〕"
_HASHES = "#＃﹟♯⌗"
_LETTERS = "аеорсухѕіјһԁѵѡкмтпоαονιρυτκΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХ"
_LATIN = "aeopcyxsijhdvwkmtnoaoviputkABEZHIKMNOPTYXABEKMHOPCTX"
_LOOKS: dict[int, str] = {
    **dict.fromkeys(map(ord, _ANGLES[0]), "<"),
    **dict.fromkeys(map(ord, _ANGLES[1]), ">"),
    **dict.fromkeys(map(ord, _SQUARES[0]), "["),
    **dict.fromkeys(map(ord, _SQUARES[1]), "]"),
    **dict.fromkeys(map(ord, _HASHES), "#"),
    **dict.fromkeys(map(ord, "∕⁄／⧸╱"), "/"),
    **dict.fromkeys(map(ord, "ǀ∣｜│❘⏐¦ꟾ"), "|"),
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹣－➖"), "-"),
    **dict.fromkeys(map(ord, "▁＿"), "_"),
    **dict.fromkeys(map(ord, "：ː∶"), ":"),
    # Cyrillic and Greek letters that are drawn as Latin ones.
    **{ord(one): plain for one, plain in zip(_LETTERS, _LATIN, strict=True)},
}
_PLAIN = re.compile(r"[\t\n\r -~]*")
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_SUSPECT = re.compile(f"[{re.escape(_ANGLES[0] + _SQUARES[0] + _HASHES)}]")

_ROLES = "system|user|assistant|human|model|ipython|tool|bos|eos|s|think|(?:start|end)_of_turn|im_start|im_end"
_LOOK_ALIKE = re.compile(
    rf"<\s{{0,8}}/?\s{{0,8}}(?:{'|'.join(LABELS)})\s{{0,8}}-+\s{{0,8}}[0-9a-f]{{4,64}}\s{{0,8}}>"
    r"|<\s{0,8}\|[^|<>\n]{1,60}\|\s{0,8}>"
    rf"|<\s{{0,8}}/?\s{{0,8}}(?:{_ROLES})\s{{0,8}}>"
    r"|<\s{0,8}<\s{0,8}/?\s{0,8}sys\s{0,8}>\s{0,8}>"
    r"|\[\s{0,8}/?\s{0,8}(?:inst|system_prompt|available_tools|tool_calls|tool_results)\s{0,8}\]",
    re.I,
)
_HEADINGS = (
    "system|user|assistant|human|query|answer|reply|metrics|why these metrics were chosen|the query"
    "|the answer to judge|the current system prompt|former versions of the system prompt.*"
    "|answers under the current system prompt.*|(?:instruction|response|input)\\s{0,8}:"
)
_HEADING = re.compile(rf"(\s*)(#{{1,6}}\s{{0,8}}(?:{_HEADINGS})\s{{0,8}}:?\s{{0,8}}#{{0,12}}\s*)", re.I)
_OTHER_BRACKETS = str.maketrans("<>[]", "[]()")


def fence(label: str, text: str) -> str:
    """Return the text between tags that it cannot close itself, and without look-alikes of what delimits requests.

    The tags' suffix is a hash of the text: another text's tags are of no use to it, and equal texts have equal ones.
    """
    shown = defuse(text)
    for number in count():
        seed = f"{number or ''}{shown}".encode("utf-8", "surrogatepass")
        mark = f"{label}-{hashlib.sha256(seed).hexdigest()[:8]}"
        if mark not in shown:
            return f"<{mark}>\n{shown}\n</{mark}>"
    raise AssertionError("the numbers do not end")


def defuse(text: str) -> str:
    """Return the text with role tags, tags of ours and headings of ours in a form that delimits nothing.

    Found out whatever signs they are written in: full width, another alphabet's letters, with unseen ones between.
    """
    if not _SUSPECT.search(text):
        return text
    lines = text.splitlines(keepends=True)
    return "".join(_escape_heading(_defuse_tags(line)) if _SUSPECT.search(line) else line for line in lines)


def defuse_roles(text: str) -> str:
    """Return the text with role tags and tags of ours in other brackets, and its headings as they are."""
    if not _SUSPECT.search(text):
        return text
    lines = text.splitlines(keepends=True)
    return "".join(_defuse_tags(line) if _SUSPECT.search(line) else line for line in lines)


def escape_headings(text: str) -> str:
    """Return the text with a backslash before the headings of a flat prompt, and everything else as it is."""
    if not _SUSPECT.search(text):
        return text
    return "".join(_escape_heading(line) if _SUSPECT.search(line) else line for line in text.splitlines(keepends=True))


def _defuse_tags(line: str) -> str:
    while True:
        folded, places = _fold(line)
        found = list(_LOOK_ALIKE.finditer(folded))
        if not found:
            return line
        # What was inside another look-alike is replaced first: once more, until there is none. Each has fewer brackets.
        parts, end = [], 0
        for match in found:
            parts += [line[end : places[match.start()]], match[0].translate(_OTHER_BRACKETS)]
            end = places[match.end() - 1] + 1
        line = "".join([*parts, line[end:]])


def _escape_heading(line: str) -> str:
    folded, places = _fold(line)
    match = _HEADING.fullmatch(folded)
    if match is None:
        return line
    start = places[match.start(2)]
    return f"{line[:start]}\\{line[start:]}"


def _fold(line: str) -> tuple[str, list[int] | range]:
    """Return the line in plain signs, and the place of each of them in the line."""
    if _PLAIN.fullmatch(line):
        return line, range(len(line))
    signs: list[str] = []
    places: list[int] = []
    for place, char in enumerate(line):
        if char.isascii():
            # A control character other than white space is not seen.
            plain = char if char.isprintable() or char.isspace() else ""
        elif char in _UNSEEN or unicodedata.category(char) in ("Cf", "Mn", "Me", "Cc"):
            plain = " " if char.isspace() else ""
        else:
            plain = unicodedata.normalize("NFKC", char.translate(_LOOKS)).translate(_LOOKS)
        signs.append(plain)
        places.extend([place] * len(plain))
    return "".join(signs), places
