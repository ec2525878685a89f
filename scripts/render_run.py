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

from drpo_graph.display import RunView, render_summary
from drpo_graph.display.panel import render_panel
from drpo_graph.events import Event, RunFinished, parse_event
from drpo_graph.runner import RunOptions, optimize
from drpo_graph.settings import build_settings
from tests.support.fake_server import FakeServer, Latency, ServerOptions
from tests.support.oracle import build_responder
from tests.support.world import INITIAL_PROMPT, World

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "run.svg"
WIDTH = 110
THREAD = "demo"
FILES = ("best_prompt.txt", "result.json", "algo_output/output.json", "events.jsonl", "log.txt")
THEME = TerminalTheme(
    (15, 23, 42),
    (226, 232, 240),
    [(51, 65, 85), (248, 113, 113), (74, 222, 128), (250, 204, 21), (96, 165, 250), (192, 132, 252), (34, 211, 238), (203, 213, 225)],
    [(100, 116, 139), (252, 165, 165), (134, 239, 172), (253, 224, 71), (147, 197, 253), (216, 180, 254), (103, 232, 249), (248, 250, 252)],
)  # fmt: skip
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, nargs="?", help="events.jsonl of a finished run")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    parser.add_argument("--at", type=float, default=0.7, help="how far the panel's run is, 0 to 1 (default: 0.7)")
    parser.add_argument("--command", default="make demo", help="what the picture says was typed")
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
    place = {"model": "openai:synthetic-world"}
    options = ServerOptions(latency=Latency(median_s=0.2, sigma=0.5))
    async with FakeServer(build_responder(seed=3, missing_rate=0.02), options) as server:
        roles = {role: {**place, "base_url": server.base_url} for role in ("base", "metrics", "critic", "optimizer")}
        world = World(seed=3)
        with tempfile.TemporaryDirectory() as folder:
            await optimize(
                world.train_queries,
                settings=build_settings({"depth": 5, "initial_prompt": INITIAL_PROMPT, **roles}),
                validation=world.heldout_queries[:30],
                thread_id=THREAD,
                options=RunOptions(checkpoint=Path(folder) / "runs.sqlite", writes_files=False, sinks=(events.append,)),
            )
    return events


def draw(events: Sequence[Event], *, at: float, command: str) -> Console:
    """Return a console that has recorded the picture."""
    finished = events[-1]
    if not isinstance(finished, RunFinished):
        raise SystemExit("the log does not end with a result: finish the run first")
    console = Console(
        record=True, width=WIDTH, height=60, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
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
            files=[str(folder / name) for name in FILES],
            commands=[f"drpo show {finished.run_id}", f"drpo events {finished.run_id}"],
        ),
        crop=False,
    )
    return console


def export_svg(console: Console) -> str:
    """Return the picture, with the viewer's own monospaced font: nothing is loaded from elsewhere."""
    svg = console.export_svg(title="drpo_graph", theme=THEME, unique_id="run")
    svg = _FONT_FACE.sub("", svg)
    return svg.replace("font-family: Fira Code, monospace", "font-family: ui-monospace, 'DejaVu Sans Mono', monospace")


if __name__ == "__main__":
    sys.exit(main())
