"""The last number in a text, as people and models write numbers, and when two of them are the same."""

import re
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

MAX_DIGITS: Final = 300
"""What has more is no answer, and costs time to compare."""

_SPACES = "\u00a0\u202f\u2009"
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"),
    (re.compile(r"\{,\}|(?<=\d),\\!(?=\d)"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
)
_NUMBER = re.compile(
    # A hyphen after a word or a number joins or ranges: it is no sign.
    rf"""(?P<sign>(?<![\w)\]%])[-+\u2212])? (?:[$€£¥₹]\s?)?
    (?:
        (?: (?<![\d/.,]) (?:(?P<whole>\d+)[ {_SPACES}])? (?P<top>\d+)\s?/\s?(?P<bottom>0*[1-9]\d*)
            (?![\d]|\s?/\s?\d|\.\d) )
      | (?P<grouped> \d{{1,3}} (?:[,'\u2019{_SPACES}]\d{{3}})+ (?!\d) (?:\.\d+)? )
      | (?P<continental> \d{{1,3}} (?: (?:\.\d{{3}})+,\d+ | (?:\.\d{{3}}){{2,}} ) (?!\d) )
      | (?P<plain> (?: \d+(?:\.\d+)? | (?<!\d)\.\d+ ) (?:[eE][-+]?\d{{1,3}}(?!\w))? )
    )
    (?P<percent>\s?%|\s+per\s?cent\b)?
    """,
    re.VERBOSE,
)


class Number(NamedTuple):
    """A number that was read."""

    value: Fraction
    is_percent: bool
    """Whether it stood before a percent sign; the value is that of its digits."""


def last_number(text: str) -> Number | None:
    """Return the last number in a text, or ``None`` where there is none.

    Separators of thousands, signs, currencies, ``3/4``, ``1 3/4``, ``\\frac{3}{4}`` and ``1.5e3`` are read; a dot that
    ends a sentence is no part of a number.
    """
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    found = next(iter(deque(_NUMBER.finditer(text), maxlen=1)), None)
    if found is None or sum(map(str.isdecimal, found[0])) > MAX_DIGITS:
        return None
    value = _value_of(found)
    return Number(-value if found["sign"] in ("-", "\u2212") else value, found["percent"] is not None)


def is_same_number(one: Number, other: Number) -> bool:
    """Return whether two numbers are equal; 50% is both 50 and 0.5 where the other has no percent sign."""
    if one.value == other.value:
        return True
    if one.is_percent == other.is_percent:
        return False
    share, plain = (one, other) if one.is_percent else (other, one)
    return share.value / 100 == plain.value


def _value_of(found: re.Match[str]) -> Fraction:
    if found["top"] is not None:
        part = Fraction(int(found["top"]), int(found["bottom"]))
        # "2 5/4" is two numbers, and the last one counts.
        return part + int(found["whole"]) if found["whole"] is not None and part < 1 else part
    if found["grouped"] is not None:
        return Fraction(Decimal(re.sub(rf"[,'\u2019{_SPACES}]", "", found["grouped"])))
    if found["continental"] is not None:
        return Fraction(Decimal(found["continental"].replace(".", "").replace(",", ".")))
    return Fraction(Decimal(found["plain"]))
