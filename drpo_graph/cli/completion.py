"""What the shell completes: names of runs."""

import asyncio
import sqlite3

import typer

from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.errors import DRPOError
from drpo_graph.storage.places import find_storage


def complete_thread(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of runs that begin so, the newest first, each with its status."""
    from drpo_graph.runs.reading import list_runs  # Loads LangGraph.

    try:
        storage = find_storage(ctx.params.get("checkpoint") or DEFAULT_PLACE)
        runs = asyncio.run(list_runs(storage)) if storage.exists() else []
    except (DRPOError, sqlite3.Error, OSError):
        # Whoever presses a key has asked nothing yet: the command itself will say what is wrong.
        return []
    return [(run.thread_id, run.status) for run in runs if run.thread_id.startswith(incomplete)]
