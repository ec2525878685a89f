"""What works here when it is pasted: the command that installs an extra, and drpo's own."""

import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "drpo-graph"


def tell_install(extra: str) -> str:
    """Return the command that installs an extra, whatever folder it is given in."""
    clone = _find_clone()
    return (
        f"pip install {shlex.quote(f'{_NAME}[{extra}]')}"
        if clone is None
        else (f"pip install -e {shlex.quote(f'{clone}[{extra}]')}")
    )


def tell_command(command: str) -> str:
    """Return a command of ``drpo`` as it can be pasted: with the path that it was called by, where it needs one."""
    called = sys.argv[0]
    if Path(called).name != "drpo":
        return command
    found = shutil.which("drpo")
    if found is not None and Path(found).resolve() == Path(called).resolve():
        return command
    return shlex.quote(called) + command.removeprefix("drpo")


def _find_clone() -> Path | None:
    """Return the clone that is run, or was installed from, while it is there; ``None`` with a package of an index."""
    candidates = [Path(__file__).resolve().parents[2]]
    try:
        # What installers note of a package that comes from a folder or an address.
        origin = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        origin = None
    if origin is not None:
        url = urlsplit(json.loads(origin)["url"])
        candidates += [Path(url2pathname(url.path))] if url.scheme == "file" else []
    return next((one for one in candidates if (one / "pyproject.toml").is_file() and (one / "nodes").is_dir()), None)
