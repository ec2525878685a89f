"""When a server that limits its callers wants to be asked again: in headers, or in its words."""

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

MAX_WAIT_S = 3600.0
"""A server that wants a longer pause is taken to want this one."""

_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""Numbers from here on are times since 1970, in seconds or in milliseconds."""
_SECONDS_BY_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|milli(?:second)?s?|secs?|seconds?|mins?|minutes?|hrs?|hours?|days?)(?![a-z])"
_PARTS = re.compile(_PART, re.I)
_AGAIN = re.compile(
    rf"\b(?:try|retry|again|wait|resets?|available)\b[^.\d]{{0,40}}((?:{_PART}(?:,? and |,? ?)?)+)", re.I
)
_RESET_NAME = re.compile(r"rate-?limit.*reset")


def read_told_wait(headers: Mapping[str, str], words: str) -> float | None:
    """Return the seconds after which a server says to ask again, an hour at most; ``None`` where it does not say.

    "At once" is no answer to how long a limit lasts: it is passed over where another place says more.

    Args:
        headers: Of the answer, their names in small letters.
        words: What the answer says.
    """
    told = [_read_number(headers.get("retry-after-ms"), scale=0.001), _read_retry_after(headers.get("retry-after"))]
    match = _AGAIN.search(words)
    told.append(_read_duration(match[1]) if match else None)
    return next((_bound(one) for one in told if one is not None and one > 0), None)


def read_reset(headers: Mapping[str, str], words: str) -> float | None:
    """Return the seconds until the limit that was met is reset, an hour at most; ``None`` where no header says.

    Of several limits, those that are used up count, else those that the words name, else the one that is reset first.
    """
    waits = {name: wait for name in headers if _RESET_NAME.search(name) if (wait := _read_reset_time(headers[name]))}
    spent = [waits[name] for name in waits if _read_number(headers.get(name.replace("reset", "remaining"))) == 0]
    named = [waits[name] for name in waits for kind in ("request", "token") if kind in name and kind in words.lower()]
    if spent:
        return _bound(max(spent))
    return _bound(min(named or waits.values())) if waits else None


def _bound(wait_s: float) -> float:
    return min(max(wait_s, 0.0), MAX_WAIT_S)


def _read_duration(text: str) -> float:
    """Return the seconds in ``1m30.5s``, ``850ms`` or ``2 minutes and 5 seconds``."""
    return sum(float(number) * _SECONDS_BY_UNIT[_unit(name.lower())] for number, name in _PARTS.findall(text))


def _unit(name: str) -> str:
    return "ms" if name.startswith(("ms", "milli")) else name[0]


def _read_retry_after(value: str | None) -> float | None:
    wait_s = _read_number(value)
    if wait_s is not None or not value:
        return wait_s
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return _read_duration(value) if _is_duration(value) else None
    return _until(date)


def _read_reset_time(value: str) -> float | None:
    """Return the seconds until a reset, given as seconds, as a duration or as a time."""
    number = _read_number(value)
    if number is not None:
        return number if number < _EPOCH_S else number / (1000 if number >= _EPOCH_MS else 1) - time.time()
    if _is_duration(value):
        return _read_duration(value)
    try:
        return _until(datetime.fromisoformat(value))
    except ValueError:
        return None


def _is_duration(text: str) -> bool:
    return re.fullmatch(rf"\s*(?:{_PART}\s*)+", text, re.I) is not None


def _until(date: datetime) -> float:
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()


def _read_number(value: str | None, *, scale: float = 1.0) -> float | None:
    try:
        number = float(value) * scale if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
