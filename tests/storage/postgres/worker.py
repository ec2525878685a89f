"""A worker as a process of its own: starts a run or resumes it, with a lease as short as a test wants it."""

import asyncio
import sys
from pathlib import Path

import langchain_openai  # noqa: F401  # Now, not when the lease is held: loading it may take as long as a short one.

from drpo_graph.errors import DRPOError, NoRunsError, RunNotFoundError
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.settings.layers import build_settings
from drpo_graph.storage.postgres import PostgresStorage

THREAD = "t"
SEARCH = {"depth": 3, "n_actions": 2, "beam_size": 1, "queries_per_level": 2}
"""That of ``tests.support.command.SMALL``."""


async def work(uri: str, lease_s: float, log_dir: Path) -> None:
    """Carry the run out."""
    options = RunOptions(checkpoint=PostgresStorage(uri, lease_s=lease_s), log_dir=log_dir)
    try:
        await resume(THREAD, options=options)
    except (RunNotFoundError, NoRunsError):
        roles = {f"{role}_model": "openai:world" for role in ("base", "metrics", "critic", "optimizer")}
        await optimize(settings=build_settings({**roles, **SEARCH}), thread_id=THREAD, options=options)


def main() -> int:
    """Work; an error is one line on stderr, its class first."""
    uri, lease_s, log_dir = sys.argv[1:]
    try:
        asyncio.run(work(uri, float(lease_s), Path(log_dir)))
    except DRPOError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
