"""JSON as models write it: with comments, trailing commas, Python's quotes and words, backslashes written once. Pure.

Read where one reading is possible; nothing is completed and nothing guessed. A text that holds a line end or a tab
where a model may have meant a backslash is told apart, so that it is asked for again.
"""

import json
import re
from typing import Final

from pydantic import JsonValue

_TOKEN: Final = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<comment>//[^\n]*|/\*.*?\*/|\#[^\n]*)
    |(?P<score>\*{1,3}\d+(?:\s*/\s*5)?\*{1,3}|\d+\s*/\s*5(?!\d)|\d+\s+[-–—]\s+[A-Za-z][A-Za-z ]*)
    |(?P<word>[A-Za-z_]+)
    |(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<space>\s+)
    |(?P<sign>[{}\[\],:])""",
    re.DOTALL | re.VERBOSE,
)
_WORDS: Final = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_GOOD_ESCAPES = frozenset('"\\/bfnrt')

_LATEX_TAILS = {
    "\n": "abla|e|eq|eg|u|ot|otin|olimits|ewline|ewcommand|onumber|mid|exists|geq|leq|earrow|warrow|oindent|cong",
    "\t": "heta|imes|ext[a-z]*|au|an|anh|o|op|ilde|riangle|herefore|frac|itle|able|abular",
}
_SWALLOWED = re.compile(
    # None of these is meant in a text: \beta, \frac, \rho.
    r"[\x08\x0c]|\r(?!\n)"
    rf"|\n(?:{_LATEX_TAILS[chr(10)]})(?![a-zA-Z.])|\t(?:{_LATEX_TAILS[chr(9)]})(?![a-zA-Z])"
    # A tab inside a line, a drive's letter, and what stands alone in quotes or brackets: `\n`, [^\n].
    r"|\n(?:[,;]|\.(?!\w))|(?<![\n\t])\t[A-Za-z.,;]|(?<![A-Za-z])[A-Za-z]:[\n\t][a-z0-9_]"
    r"|(?<![\w`])(?P<quote>[`\"'])[\n\t]+(?P=quote)(?![\w`])|\[\^[\n\t]+\]"
)


def read_near_json(text: str, start: int) -> dict[str, JsonValue] | None:
    """Return the object that begins at a brace, or ``None`` where there is none that can be read in one way only."""
    parts: list[str] = []
    depth = 0
    place = start
    while token := _TOKEN.match(text, place):
        place = token.end()
        part = _translate(token)
        if part is None:
            return None
        if part in ("}", "]") and parts[-1:] == [","]:
            parts.pop()
            if parts[-1] in ("{", "[", ",", ":"):
                return None
        if part:
            parts.append(part)
        depth += (part in ("{", "[")) - (part in ("}", "]"))
        if depth == 0:
            return _load("".join(parts))
    return None


def find_block_ends(text: str) -> list[int]:
    """Return, for each place in a text, where the braces end that are open there, or -1 where they do not.

    A brace in a string is none; a quote that nothing closes begins no string. What follows decides, so it is read from
    its end: once, however many braces there are.
    """
    string_ends, ends = [-1] * (len(text) + 2), [-1] * (len(text) + 2)
    for place in range(len(text) - 1, -1, -1):
        char, after = text[place], place + 1
        string_ends[place] = after if char == '"' else string_ends[after + (char == "\\")]
        if char == "}":
            ends[place] = after
            continue
        if char == "{":
            after = ends[after]
        elif char == '"' and string_ends[after] >= 0:
            after = string_ends[after]
        ends[place] = ends[after] if after >= 0 else -1
    return ends


def find_swallowed(text: str) -> str | None:
    """Return a place where a backslash may have become a line end, a tab or another control character, if any."""
    found = _SWALLOWED.search(text)
    if found is None:
        return None
    return json.dumps(text[max(0, found.start() - 10) : found.end() + 10], ensure_ascii=False)


def _load(text: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _translate(token: re.Match[str]) -> str | None:
    """Return a token as JSON has it, nothing for what JSON has not, ``None`` where that cannot be told."""
    said = token[0]
    match token.lastgroup:
        case "comment" | "space":
            return ""
        case "score":
            return json.dumps(said)
        case "word":
            return _WORDS.get(said)
        case "text":
            return _mend_text(said)
        case _:
            return said


def _mend_text(quoted: str) -> str | None:
    """Return a text in double quotes, with the backslashes doubled that were written once; ``None`` where unclear.

    Where one backslash was meant as it stands, others may have been: `\\alpha` makes a line end of `\\nabla`.
    """
    inside = quoted[1:-1]
    escapes = list(_ESCAPE.finditer(inside))
    bad = [one for one in escapes if len(one[1]) == 1 and one[1] not in _GOOD_ESCAPES and one[1] != "'"]
    if bad:
        is_mixed = any(one[1] == "\\" for one in escapes) or any(one[1].isspace() for one in bad)
        good = (one for one in escapes if one not in bad and one[1][0] in "bfnrtu")
        if is_mixed or any(re.match("[a-z]", inside[one.end() :]) for one in good):
            return None

    bad_starts = {one.start() for one in bad}

    def mend(escape: re.Match[str]) -> str:
        if escape[1] == "'":
            return "'"
        return f"\\{escape[0]}" if escape.start() in bad_starts else escape[0]

    mended = _ESCAPE.sub(mend, inside)
    if quoted[0] == "'":
        mended = re.sub(r'(?<!\\)((?:\\\\)*)"', r'\1\\"', mended)
    return f'"{mended}"'
