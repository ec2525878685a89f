"""What the operating system did not let be written or opened, named as what it is: libraries lose its number."""

import errno
import os
import resource
from pathlib import Path
from typing import NamedTuple

_KEPT = "and run the command again, or, where the run had begun, `drpo resume`: what was committed is kept."
_ROOM = 64 * 1024
"""Less than this is no room: what writes asks for a few pages at once."""


class Limit(NamedTuple):
    """What was reached, and what to do about it."""

    what: str
    advice: str


FULL = Limit("the disk is full", f"Free space {_KEPT}")
_QUOTA = Limit("the disk quota is used up", f"Free space {_KEPT}")
_TOO_MANY = Limit("too many files are open", f"Raise the limit (`ulimit -n`) {_KEPT}")
_TOO_LARGE = Limit("a file may not grow any larger", f"Raise the limit (`ulimit -f`) {_KEPT}")
_BY_ERRNO = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: _QUOTA,
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
    errno.EFBIG: _TOO_LARGE,
}


def limit_of(error: BaseException) -> Limit | None:
    """Return the limit that an error of the operating system names, or ``None``."""
    return _BY_ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None


def find_limit(*files: Path) -> Limit | None:
    """Return the limit that keeps these files from growing, or any from being opened; ``None`` where none does.

    For errors whose number was lost: what is looked at is how things are now.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
        allowed, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        sizes = [file.stat().st_size for file in files if file.exists()]
        if allowed != resource.RLIM_INFINITY and max(sizes, default=0) + _ROOM >= allowed:
            return Limit(f"a file may not grow beyond {allowed} bytes", _TOO_LARGE.advice)
        space = os.statvfs(files[0].parent)
    except OSError as error:
        return limit_of(error)
    return FULL if space.f_bavail * space.f_frsize < _ROOM else None
