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

from drpo_graph.safety.texts import is_unseen

LABELS: Final = ("query", "answer", "prompt", "remarks", "metrics", "reasoning")
"""What our fences are called."""
MARK_LENGTH: Final = 12
"""Hexadecimal digits in a fence's tags."""

_SIGNS_BY_LOOK = {
    "<": "<‹˂≺≮❮❬❰⟨〈〈︿＜﹤ᐸᐊ⧼⦑",
    ">": ">›˃≻≯❯❭❱⟩〉〉﹀＞﹥ᐳᐅ⧽⦒",
    "[": "[［⟦【〔﹇",
    "]": "]］⟧】〕﹈",
    "#": "#＃﹟♯⌗",
    "/": "∕⁄／⧸╱",
    "|": "ǀ∣｜│❘⏐¦ꟾ",
    "-": "‐‑‒–—―−﹣－➖",
    "_": "▁＿",
    ":": "：ː∶",
}
# Cyrillic, Greek and phonetic letters that are drawn as Latin ones.
_LETTERS = "аеорсухѕіјһԁѵѡкмтпоαονιρυτκΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХɑɡıɩ"
_LATIN = "aeopcyxsijhdvwkmtnoaoviputkABEZHIKMNOPTYXABEKMHOPCTXagii"
_LOOKS: dict[int, str | int] = {
    **{ord(sign): plain for plain, signs in _SIGNS_BY_LOOK.items() for sign in signs},
    **str.maketrans(_LETTERS, _LATIN),
}
_PLAIN = re.compile(r"[\t\n\r -~]*")
_SUSPECT = re.compile(f"[{re.escape(''.join(_SIGNS_BY_LOOK[sign] for sign in '<[#'))}]")

_ROLES = (
    "system|user|assistant|human|developer|model|ipython|tool|bos|eos|pad|unk|s|think"
    r"|(?:start|end)_of_turn|im_start|im_end|extra_id_\d+"
)
_CALLS = "tool_calls?|tool_responses?|tool_results?|function_calls?|function_results?|invoke"
# A letter that is in no table of ours may be drawn as any; one of the first signs in ASCII is enough to be suspected.
# That is a set of its own: as a range beside the letter, and with case ignored, it takes half a second to compile.
_LABEL_LETTERS = ("".join(rf"(?:{letter}|(?-i:[^\x00-\x7f]))" for letter in label) for label in LABELS)
_LABEL = rf"(?=[^\x00-\x7f]{{0,4}}[a-z])(?:{'|'.join(_LABEL_LETTERS)})"
_NO_WORD = r"(?:[^\w<>]|_)*+"
# Taken if it is there: what begins like one of our tags need not end to be read as one.
_TAIL = r"(?:[^<>]{0,80}+>)?"
_TAGS = (
    rf"<{_NO_WORD}{_LABEL}{_NO_WORD}[0-9a-f]{{3}}(?:[0-9a-f]{{5}}{_TAIL}|[0-9a-f]{{1,4}}\s*+>)"
    r"|<\s*+\|[^|<>]{1,60}\|\s*+>"
    rf"|<\s*+(?:/\s*+)?(?:{_ROLES})\s*+>"
    r"|<\s*+<\s*+(?:/\s*+)?sys\s*+>\s*+>"
    r"|\[\s*+(?:/\s*+)?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\s*+\]"
)
# A closing tag by our label's name, unless it is part of a longer name; and calls of tools.
_MATERIAL_TAGS = (
    rf"|<(?=(?:[^\w<>/]|_)*+/){_NO_WORD}{_LABEL}(?![-_.:]?(?![0-9a-f]{{4}})[a-z]){_TAIL}"
    rf"|(?P<call><\s*+(?:/\s*+)?(?:{_CALLS})(?:\s*+>|[\s=][^<>]{{0,200}}+>))"
)
_ROLE_TAG = re.compile(_TAGS, re.I)
_LOOK_ALIKE = re.compile(_TAGS + _MATERIAL_TAGS, re.I)
_HEADINGS = (
    "system|user|assistant|human|query|answer|reply|metrics|metrics to choose from|why these metrics were chosen"
    "|the query|the answer to judge|the current system prompt|former versions of the system prompt.*"
    r"|answers under the current system prompt.*|(?:instruction|response|input)(?=\s{0,8}:)"
).replace(" ", r"\s{1,8}")
_HEADING = re.compile(
    r"(\s*)("
    rf"(?:#{{1,6}}\s{{0,8}}[*_]{{0,3}}(?:{_HEADINGS})|#{{3}}\s{{0,8}}[*_]{{0,3}}(?:instruction|response|input))"
    r"[*_]{0,3}\s{0,8}(?:\d{1,8}\s{0,8})?(?:\([^)]{0,200}\)\s{0,8})?(?::.*|#{0,12})\s*)",
    re.I,
)
_OTHER_BRACKETS = str.maketrans("<>[]", "[]()")
_ROUND_BRACKETS = str.maketrans("<>", "()")


def fence(label: str, text: str) -> str:
    """Return the text between tags that it cannot close itself, and without look-alikes of what delimits requests.

    The tags' suffix is a hash of the text, without a key: equal texts have equal tags in every run. Whoever writes the
    text can compute it, but a text that holds its own tag would have to contain its own hash: one in 2**48 does, and
    for that one the next number is hashed in. Another text's tags are look-alikes.
    """
    shown = defuse(text)
    seeds = (f"{number or ''}{shown}".encode("utf-8", "surrogatepass") for number in count())
    marks = (f"{label}-{hashlib.sha256(seed).hexdigest()[:MARK_LENGTH]}" for seed in seeds)
    mark = next(one for one in marks if one not in shown)
    return f"<{mark}>\n{shown}\n</{mark}>"


def defuse(text: str) -> str:
    """Return the text with role tags, tags of ours and headings of ours in a form that delimits nothing.

    Found out whatever signs they are written in: full width, another alphabet's letters, with unseen ones or line ends
    between, with something after the name.
    """
    return escape_headings(_defuse_tags(text, _LOOK_ALIKE)) if _SUSPECT.search(text) else text


def defuse_roles(text: str) -> str:
    """Return the text with role tags and whole tags of ours in other brackets, and everything else as it is.

    For a new prompt, which may ask for a form of answers: `</answer>` and calls of tools stay.
    """
    return _defuse_tags(text, _ROLE_TAG) if _SUSPECT.search(text) else text


def escape_headings(text: str) -> str:
    """Return the text with a backslash before the headings of a flat prompt, and everything else as it is."""
    return "".join(_escape_heading(line) if _SUSPECT.search(line) else line for line in text.splitlines(keepends=True))


def _defuse_tags(text: str, look_alike: re.Pattern[str]) -> str:
    while True:
        folded, places = _fold(text)
        found = list(look_alike.finditer(folded))
        if not found:
            return text
        # What was inside another look-alike is replaced first: once more, until there is none. Each has fewer brackets,
        # and its length is limited: so is how many can be inside each other.
        parts, end = [], 0
        for match in found:
            # In square brackets, a call would be another model's.
            brackets = _ROUND_BRACKETS if match.lastgroup == "call" else _OTHER_BRACKETS
            parts += [text[end : places[match.start()]], match[0].translate(brackets)]
            end = places[match.end() - 1] + 1
        text = "".join([*parts, text[end:]])


def _escape_heading(line: str) -> str:
    folded, places = _fold(line)
    match = _HEADING.fullmatch(folded)
    if match is None:
        return line
    start = places[match.start(2)]
    return f"{line[:start]}\\{line[start:]}"


def _fold(text: str) -> tuple[str, list[int] | range]:
    """Return the text in plain signs, and the place of each of them in the text."""
    if _PLAIN.fullmatch(text):
        return text, range(len(text))
    signs: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        if char.isascii():
            # A control character other than white space is not seen.
            plain = char if char.isprintable() or char.isspace() else ""
        elif is_unseen(char) or unicodedata.category(char) in ("Mn", "Me"):
            plain = " " if char.isspace() else ""
        else:
            plain = unicodedata.normalize("NFKC", char.translate(_LOOKS)).translate(_LOOKS)
        signs.append(plain)
        places.extend([place] * len(plain))
    return "".join(signs), places
