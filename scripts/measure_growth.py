"""Measure what a run adds to its checkpoint per level: it must not grow with the level.

A 2x3 search (one query per level, as published) with about 6 KB of text per child: prompt, response and critique.

    python scripts/measure_growth.py --levels 105
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.events.schema import Event, LevelFinished
from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.storage.sqlite_file import open_checkpoint
from tests.support.oracle import Oracle, OracleTransport, role_of
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

CHILD_BYTES = 6000
WINDOW = 5
MAX_RATIO = 1.2


@dataclass
class PaddedTransport(OracleTransport):
    """The oracle, with responses as long as real ones."""

    async def send(self, request: Request) -> Reply:
        """Return the oracle's reply; a response is filled up so that a child weighs about 6 KB."""
        reply = await super().send(request)
        if role_of(request.messages) != "base":
            return reply
        padded = [f"{one.text}\n{'lorem ipsum ' * ((CHILD_BYTES - 1200) // 12)}" for one in reply.choices]
        return replace(reply, choices=tuple(Choice(text=text) for text in padded))


def count_bytes(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the stored bytes of each table, and the size of the database."""
    tables = {
        "checkpoints": "select coalesce(sum(length(checkpoint) + length(metadata)), 0) from checkpoints",
        "writes": "select coalesce(sum(length(value)), 0) from writes",
        "store": "select coalesce(sum(length(value)), 0) from store",
    }
    sizes = {name: int(connection.execute(query).fetchone()[0]) for name, query in tables.items()}
    pages, page_size = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return {**sizes, "database": int(pages) * int(page_size)}


async def measure(num_levels: int, path: Path) -> dict[int, dict[str, int]]:
    """Return what was stored when each level was finished."""
    settings = fake_settings(compat="drpo", depth=num_levels + 1, beam_size=2, n_actions=3, max_depth_increase=0)
    world = World(seed=0, num_queries=num_levels + 210)
    sizes: dict[int, dict[str, int]] = {}
    async with open_checkpoint(path) as checkpoint:
        connection = sqlite3.connect(path)

        def note(event: Event) -> None:
            if isinstance(event, LevelFinished):
                sizes[event.level] = count_bytes(connection)

        await run_search(
            settings,
            world,
            world.train_queries[: num_levels + 1],
            transport=PaddedTransport(Oracle(world)),
            checkpointer=checkpoint.saver,
            store=checkpoint.store,
            sinks=(note,),
        )
        connection.close()
    return sizes


def per_level(sizes: dict[int, dict[str, int]], level: int, what: str) -> float:
    """Return the mean bytes added per level around a level."""
    levels = range(level - WINDOW + 1, level + 1)
    return mean(sizes[one][what] - sizes[one - 1][what] for one in levels)


def main() -> int:
    """Measure and report; exit code 1 if level 100 costs more than 1.2 times level 10."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=102)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = asyncio.run(measure(given.levels, Path(folder) / "checkpoints.sqlite"))
    early, late = 12, given.levels
    print(f"{'KB per level':14} {'level ' + str(early):>10} {'level ' + str(late):>10}  ratio")
    for what in ("checkpoints", "writes", "store", "database"):
        first, last = per_level(sizes, early, what), per_level(sizes, late, what)
        print(f"{what:14} {first / 1000:10.1f} {last / 1000:10.1f}  {last / first:.2f}")
    ratio = per_level(sizes, late, "database") / per_level(sizes, early, "database")
    print(f"database after {given.levels} levels: {sizes[given.levels]['database'] / 1e6:.1f} MB")
    return 0 if ratio <= MAX_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
