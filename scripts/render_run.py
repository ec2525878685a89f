"""Draw a run as it looks in a terminal: the live panel at work, then the summary. Makes docs/run.svg.

    python scripts/render_run.py                               a search on the synthetic world, through a fake server
    python scripts/render_run.py drpo_runs/THREAD/events.jsonl   a run of yours

With ``--text`` it prints the picture to the terminal too.
"""

import argparse
import asyncio
import io
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # For tests.support.

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from drpo_graph.display.panel import render_panel
from drpo_graph.display.summary import render_summary
from drpo_graph.display.view import RunView
from drpo_graph.events.schema import Event, RunFinished, parse_event
from drpo_graph.records import ROLES
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import FakeServer, Latency, ServerOptions
from tests.support.oracle import build_responder
from tests.support.world import INITIAL_PROMPT, World

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "run.svg"
WIDTH = 110
THREAD = "synthetic"
COMMAND = "drpo optimize queries.jsonl --validation held_out.jsonl --model openai:synthetic-world"
FILES = ("best_prompt.txt", "result.json", "algo_output/output.json", "events.jsonl", "log.txt")
# Black, red, green, yellow, blue, magenta, cyan, white; then the same, bright.
_COLORS = (
    "334155 f87171 4ade80 facc15 60a5fa c084fc 22d3ee cbd5e1 64748b fca5a5 86efac fde047 93c5fd d8b4fe 67e8f9 f8fafc"
)
_BACKGROUND, _FOREGROUND = "0f172a", "e2e8f0"
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, nargs="?", help="events.jsonl of a finished run")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    parser.add_argument("--at", type=float, default=0.45, help="how far the panel's run is, 0 to 1 (default: 0.45)")
    parser.add_argument("--command", default=COMMAND, help="what the picture says was typed")
    parser.add_argument("--text", action="store_true", help="print it as well")
    args = parser.parse_args()
    events = read_events(args.events) if args.events else asyncio.run(search_synthetic_world())
    console = draw(events, at=args.at, command=args.command)
    if args.text:
        print(console.export_text(clear=False))
    args.output.write_text(export_svg(console), encoding="utf-8")
    return 0


def read_events(path: Path) -> list[Event]:
    """Return the events of a run's log."""
    return [parse_event(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


async def search_synthetic_world() -> list[Event]:
    """Return the events of a real search, whose models are the synthetic world behind a server."""
    events: list[Event] = []
    options = ServerOptions(latency=Latency(median_s=0.2, sigma=0.5))
    async with FakeServer(build_responder(seed=3, missing_rate=0.01), options) as server:
        roles: dict[str, object] = {
            role: {"model": "openai:synthetic-world", "base_url": server.base_url} for role in ROLES
        }
        world = World(seed=3)
        searched: dict[str, object] = {"depth": 13, "initial_prompt": INITIAL_PROMPT, **roles}
        with tempfile.TemporaryDirectory() as folder:
            await optimize(
                world.train_queries,
                settings=build_settings(searched),
                validation=world.heldout_queries[:100],
                thread_id=THREAD,
                options=RunOptions(checkpoint=Path(folder) / "runs.sqlite", writes_files=False, sinks=(events.append,)),
            )
    return events


def draw(events: Sequence[Event], *, at: float, command: str) -> Console:
    """Return a console that has recorded the picture."""
    finished = events[-1]
    if not isinstance(finished, RunFinished):
        raise SystemExit("the log does not end with a result: finish the run first")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    started = events[0].time
    moment = started + at * (finished.time - started)
    view = RunView()
    for event in events:
        if event.time <= moment:
            view.apply(event)
    console.print(Text.assemble(("$ ", "green"), command))
    console.print(render_panel(view, now=moment, width=WIDTH, height=28))
    folder = Path("drpo_runs", finished.run_id)
    console.print(
        render_summary(
            finished.result,
            elapsed_s=finished.elapsed_s or finished.time - started,
            files=[folder / name for name in FILES],
            commands=[f"drpo show {finished.run_id}", f"drpo events {finished.run_id}"],
        ),
        crop=False,
    )
    return console


def export_svg(console: Console) -> str:
    """Return the picture, with the viewer's own monospaced font: nothing is loaded from elsewhere."""
    colors = [_rgb(color) for color in _COLORS.split()]
    theme = TerminalTheme(_rgb(_BACKGROUND), _rgb(_FOREGROUND), colors[:8], colors[8:])
    svg = console.export_svg(title="", theme=theme, unique_id="run")
    svg = _FONT_FACE.sub("", svg)
    return svg.replace("font-family: Fira Code, monospace", "font-family: ui-monospace, 'DejaVu Sans Mono', monospace")


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color)
    return red, green, blue


if __name__ == "__main__":
    sys.exit(main())
