"""Draw the graphs from the code into docs/graph.md, between its two markers.

python scripts/draw_graph.py            rewrite the diagram
python scripts/draw_graph.py --check    exit with 1 when it is out of date
"""

import argparse
import re
import sys
from inspect import getclosurevars
from pathlib import Path
from typing import Any

from langchain_core.runnables.graph import NodeStyles

from drpo_graph.graph import build_graph
from drpo_graph.icl import build_icl_graph

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "graph.md"
START, END = "<!-- graph: written by scripts/draw_graph.py -->\n", "<!-- end of graph -->"
_EDGE = re.compile(r"^ *(\w+) (-\.->|-->) (\w+);$", re.MULTILINE)
# Dark text on a fixed fill reads on a light page and on a dark one.
_STYLES = NodeStyles(
    default="fill:#eef2ff,stroke:#6366f1,color:#111827",
    first="fill:#ffffff,stroke:#6b7280,color:#111827",
    last="fill:#ffffff,stroke:#6b7280,color:#111827",
)


def main() -> int:
    """Rewrite the document, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    args = parser.parse_args()
    text = args.document.read_text(encoding="utf-8")
    drawn = replace_diagram(text, draw())
    if args.check:
        is_current = edges_of(text) == edges_of(drawn)
        print(f"{args.document.name} is {'up to date' if is_current else 'out of date: run this without --check'}")
        return 0 if is_current else 1
    args.document.write_text(drawn, encoding="utf-8")
    return 0


def edges_of(text: str) -> set[tuple[str, ...]]:
    """Return the diagrams' edges: what must agree, whatever else a version of LangGraph draws differently."""
    return {tuple(found) for found in _EDGE.findall(text)}


def draw() -> str:
    """Return the search, the rollout, which LangGraph leaves folded as it has no checkpoints, and the second graph."""
    graph = build_graph()
    node: Any = graph.nodes["rollout"].bound
    rollout = getclosurevars(node.afunc).nonlocals["inner"]
    parts = (
        ("The search, with `expand` opened:", _to_mermaid(graph.get_graph(xray=True))),
        ("`rollout`, which `validate` is too:", _to_mermaid(rollout.get_graph())),
        (
            "The optimisation of ICL examples, with `example` opened:",
            _to_mermaid(build_icl_graph().get_graph(xray=True)),
        ),
    )
    return "\n\n".join(f"{title}\n\n```mermaid\n{diagram}\n```" for title, diagram in parts)


def replace_diagram(text: str, diagram: str) -> str:
    """Return the document with the diagram between its markers."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"expected the markers {START.strip()!r} and {END!r} in the document")
    return f"{before}{START}\n{diagram}\n\n{END}{after}"


def _to_mermaid(graph: Any) -> str:
    text: str = graph.draw_mermaid(node_colors=_STYLES)
    # LangGraph escapes the colon of "expand:rollout" in a way that not every renderer reads.
    text = text.replace("\\3a", "_").replace("\t", "    ").strip()
    # Without the block of settings before the diagram.
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


if __name__ == "__main__":
    sys.exit(main())
