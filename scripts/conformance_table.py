"""Print what tests/conformance found as a table: surfaces, cases, and how many tests passed, from pytest's JUnit files.

    python -m pytest tests/conformance --junitxml build/conformance.xml
    python scripts/conformance_table.py build/conformance.xml

Several files are counted together: runs of the tests that are marked ``slow`` and ``postgres`` besides.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

Outcome = Literal["passed", "failed", "skipped"]

CASES = ("search", "ICL", "parent", "calling parent", "grandparent", "other")
"""The columns; the last one is of tests that are about no single case."""
_SERVED = {"drpo": "search", "icl": "ICL"}

_ROWS = (
    (r"\.test_surfaces\..*\[(ainvoke|durability)", "`ainvoke`, versions and durabilities"),
    (r"\.test_surfaces\..*\[(abatch|as_tool)", "`abatch`, `as_tool`"),
    (r"\.test_surfaces\..*\[astream( |,)", "`astream`, all modes"),
    (r"\.test_surfaces\..*\[astream_", "`astream_events` v1 to v3, `astream_log`"),
    (r"\.test_surfaces\.", "schemas, synchronous calls"),
    (r"test_broken_parents.*\[memory", "broken off, in memory"),
    (r"test_broken_parents.*\[SQLite", "broken off, SQLite"),
    (r"test_broken_parents.*\[PostgreSQL", "broken off, PostgreSQL"),
    (r"test_pauses.*PostgreSQL", "interrupt and resume, PostgreSQL"),
    (r"test_pauses", "interrupt and resume"),
    (r"test_time_travel.*PostgreSQL", "time travel, PostgreSQL"),
    (r"test_time_travel", "time travel, state changed by hand, a second input"),
    (r"test_cancelled", "cancelled"),
    (r"test_uvloop", "uvloop"),
    (r"test_notebook", "notebook"),
    (r"test_server.*\[RemoteGraph", "`langgraph dev`: `RemoteGraph`"),
    (r"test_server", "`langgraph dev`: client, HTTP, schemas, refusals"),
    (r"test_callbacks", "callbacks"),
    (r"", "models, parts and settings given by callers"),
)
"""A pattern of tests' names, and the row of those that no row above has."""


def read_outcomes(paths: Iterable[Path]) -> Iterator[tuple[str, Outcome]]:
    """Yield each test's name, with its module, and how it ended."""
    for path in paths:
        for test in ET.parse(path).getroot().iter("testcase"):
            kinds = {child.tag for child in test}
            outcome: Outcome = (
                "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            )
            yield f"{test.get('classname')}.{test.get('name')}", outcome


def find_place(test: str) -> tuple[str, str]:
    """Return the row and the column of a test."""
    row = next(label for pattern, label in _ROWS if re.search(pattern, test))
    ends = re.search(r"[\[-]([^\[\]-]+)\]$", test)
    case = _SERVED.get(ends[1], ends[1]) if ends else "other"
    return row, case if case in CASES else "other"


def render(outcomes: Iterable[tuple[str, Outcome]]) -> str:
    """Return the table as Markdown: numbers of tests that passed, and of those that did not, in words."""
    found: defaultdict[tuple[str, str], Counter[Outcome]] = defaultdict(Counter)
    for test, outcome in outcomes:
        found[find_place(test)][outcome] += 1
    lines = [f"| surface | {' | '.join(CASES)} |", f"|---|{'---|' * len(CASES)}"]
    for _, row in _ROWS:
        cells = [_render_cell(found[row, case]) for case in CASES]
        if any(cells):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    total: Counter[Outcome] = sum(found.values(), Counter())
    return "\n".join([*lines, "", f"{_render_cell(total)} in all"])


def _render_cell(counts: Counter[Outcome]) -> str:
    others = [f"{counts[one]} {one}" for one in ("failed", "skipped") if counts[one]]
    return ", ".join(([str(counts["passed"])] if counts["passed"] else []) + others)


def main(arguments: list[str]) -> int:
    """Print the table; exit code 1 if a test failed."""
    if not arguments:
        print(__doc__)
        return 2
    outcomes = list(read_outcomes(map(Path, arguments)))
    print(render(outcomes))
    return 1 if any(outcome == "failed" for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
