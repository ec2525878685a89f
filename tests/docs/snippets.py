"""Python blocks in Markdown files."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Snippet(NamedTuple):
    """One block, and what it stands under."""

    heading: str
    code: str
    line: int
    """Of its first line of code in the file."""


def read_snippets(name: str) -> list[Snippet]:
    """Return the Python blocks of a file, in their order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    snippets = []
    for found in _BLOCK.finditer(text):
        before = text[: found.start(1)]
        snippets.append(Snippet(_HEADING.findall(before)[-1], found[1], before.count("\n") + 1))
    return snippets


def run_snippet(snippet: Snippet, name: str, namespace: dict[str, object]) -> None:
    """Execute a block; its line numbers in a traceback are those of the file."""
    source = "\n" * (snippet.line - 1) + snippet.code
    exec(compile(source, str(ROOT / name), "exec"), namespace)
