"""Measure many runs at once in one process on PostgreSQL: that all end right, and what the database costs.

The runs share one pool of connections; each has a lease of its own. The model is the synthetic world behind a fake
server in a process of its own; the database server is started for the measurement (extra ``test-postgres``).

    python scripts/measure_postgres.py --runs 50
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.checkpoint import SqliteStorage
from drpo_graph.cli.execution import calm_collector
from drpo_graph.postgres import PostgresStorage
from drpo_graph.postgres.database import Database
from drpo_graph.records import RunResult
from drpo_graph.runner import RunOptions, optimize
from drpo_graph.settings import Settings, build_settings
from drpo_graph.storage import Storage
from tests.support.fake_server import Latency, ServerOptions, spawn_fake_server
from tests.support.postgres import query, run_postgres
from tests.support.world import INITIAL_PROMPT, World

QUERIES = World(seed=0).train_queries[:60]
_Result = TypeVar("_Result")


@dataclass
class Waits:
    """What the runs' tasks waited for the database, all tasks together."""

    num: int = 0
    total_s: float = 0.0


class TimedDatabase(Database):
    """A database whose pieces of work are timed."""

    waits = Waits()

    async def attempt(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do a piece of work and note how long it took."""
        started = time.monotonic()
        try:
            return await super().attempt(work)
        finally:
            self.waits.num += 1
            self.waits.total_s += time.monotonic() - started


@contextmanager
def timed_database() -> Iterator[Waits]:
    """Have the databases that are opened in the block timed."""
    from drpo_graph.postgres import database

    database.Database = TimedDatabase  # type: ignore[misc]
    try:
        yield TimedDatabase.waits
    finally:
        database.Database = Database  # type: ignore[misc]


def make_settings(base_url: str, max_concurrency: int) -> Settings:
    """Return the settings of a search against the fake server."""
    roles = {
        f"{role}_{name}": value
        for role in ("base", "metrics", "critic", "optimizer")
        for name, value in (("model", "openai:fake"), ("base_url", base_url))
    }
    search = {"depth": 4, "queries_per_level": 3, "pool_size": 6, "max_concurrency": max_concurrency}
    return build_settings({"initial_prompt": INITIAL_PROMPT, **roles, **search})


async def run_all(settings: Settings, storage: Storage, num_runs: int) -> list[RunResult]:
    """Return the results of so many runs at once."""
    options = RunOptions(checkpoint=storage, writes_files=False)
    return await asyncio.gather(
        *(optimize(QUERIES, settings=settings, thread_id=f"run-{n}", options=options) for n in range(num_runs))
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What so many runs at once came to."""

    num_runs: int
    num_wrong: int
    num_calls: int
    wall_s: float
    cpu_s: float
    memory: int
    """In bytes, at the peak, beyond what the process had before."""
    size: int
    """Of the database, in bytes."""
    num_events: int
    num_leases: int


def measure(uri: str, settings: Settings, expected: RunResult, num_runs: int) -> Measured:
    """Return what so many runs at once come to on a database."""
    memory, cpu, started = psutil.Process(os.getpid()).memory_info().rss, time.process_time(), time.monotonic()
    results = asyncio.run(run_all(settings, PostgresStorage(uri), num_runs))
    wall_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size, num_events, num_leases = query(
        uri,
        "SELECT pg_database_size(current_database()), (SELECT count(*) FROM drpo_events), "
        "(SELECT count(*) FROM drpo_leases)",
    )[0]
    return Measured(
        num_runs=num_runs,
        num_wrong=sum(one.model_copy(update={"thread_id": expected.thread_id}) != expected for one in results),
        num_calls=sum(usage.calls for result in results for usage in result.usage_by_role.values()),
        wall_s=wall_s,
        cpu_s=cpu_s,
        memory=peak - memory,
        size=size,
        num_events=num_events,
        num_leases=num_leases,
    )


def report(found: Measured, waits: Waits) -> None:
    """Print it."""
    num_runs, num_calls = found.num_runs, found.num_calls
    print(f"{num_runs} runs at once: {num_runs - found.num_wrong} ended as on SQLite, {found.num_leases} leases left")
    print(
        f"{num_calls} calls in {found.wall_s:.1f} s: {num_calls / found.wall_s:.0f} per second, "
        f"{1000 * found.cpu_s / num_calls:.1f} ms of CPU each"
    )
    print(f"memory per run at the peak: {found.memory / num_runs / 1e6:.2f} MB")
    print(f"database: {found.size / num_runs / 1e6:.2f} MB and {found.num_events / num_runs:.0f} events per run")
    print(
        f"waits for the database: {waits.num / num_calls:.1f} per call, {1000 * waits.total_s / waits.num:.1f} ms "
        f"each, {waits.total_s / (found.wall_s * num_runs):.0%} of the runs' time"
    )


def main() -> int:
    """Measure and report; exit code 1 if a run ended otherwise than on SQLite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2, help="of the model, in seconds")
    given = parser.parse_args()
    options = ServerOptions(latency=Latency(median_s=given.latency))
    responder = "tests.support.oracle:build_responder"
    with (
        tempfile.TemporaryDirectory() as folder,
        run_postgres() as postgres,
        spawn_fake_server(responder, config={"seed": 0}, options=options) as server,
        timed_database() as waits,
    ):
        settings = make_settings(server.base_url, 256)
        (expected,) = asyncio.run(run_all(settings, SqliteStorage(Path(folder) / "runs.sqlite"), 1))
        calm_collector()
        found = measure(postgres.make_database(), settings, expected, given.runs)
    report(found, waits)
    return 1 if found.num_wrong or found.num_leases else 0


if __name__ == "__main__":
    sys.exit(main())
