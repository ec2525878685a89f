"""Measure many runs at once in one process on PostgreSQL: that all end right, and what the database costs.

The runs share one pool of connections; each has a lease of its own. The model is the synthetic world behind a fake
server in a process of its own; the database server is started for the measurement (extra ``test-postgres``).

    python scripts/measure_postgres.py --runs 50

A run waits for the database while at least one of its tasks does. Of what tasks wait, the time until a connection is
free is told apart from the time of the statements.
"""

import argparse
import asyncio
import faulthandler
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.cli.execution import calm_collector
from drpo_graph.records import RunResult
from drpo_graph.runs.runner import RunOptions, optimize
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.postgres import PostgresStorage
from drpo_graph.storage.postgres.database import Connection, Database
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.sqlite_file import SqliteStorage
from tests.support.fake_server import Latency, ServerOptions, spawn_fake_server
from tests.support.postgres import query, run_postgres
from tests.support.world import INITIAL_PROMPT, World

QUERIES = World(seed=0).train_queries[:60]
RUN: ContextVar[str] = ContextVar("RUN", default="")
"""Whose task it is."""
_Result = TypeVar("_Result")


@dataclass
class Waits:
    """What was waited for the database."""

    num: int = 0
    queue_s: float = 0.0
    """Tasks waited for a connection, all tasks together."""
    statement_s: float = 0.0
    """Tasks had one, all tasks together."""
    waiting_s: float = 0.0
    """Runs had at least one task that waited, all runs together."""
    running_s: float = 0.0
    """Runs lasted, all runs together."""
    _num_open: Counter[str] = field(default_factory=Counter)
    _since: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Note that a task of the run waits for as long as the block lasts."""
        run = RUN.get()
        self.num += 1
        self._num_open[run] += 1
        if self._num_open[run] == 1:
            self._since[run] = time.monotonic()
        try:
            yield
        finally:
            self._num_open[run] -= 1
            if self._num_open[run] == 0:
                self.waiting_s += time.monotonic() - self._since.pop(run)


class TimedDatabase(Database):
    """A database whose pieces of work are timed."""

    waits = Waits()

    async def attempt(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do a piece of work and note how long it took."""
        with self.waits.wait():
            return await super().attempt(work)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, and note how long it was waited for and used."""
        asked_at = time.monotonic()
        async with super().connection() as connection:
            got_at = time.monotonic()
            self.waits.queue_s += got_at - asked_at
            try:
                yield connection
            finally:
                self.waits.statement_s += time.monotonic() - got_at


@contextmanager
def timed_database() -> Iterator[Waits]:
    """Have the databases that are opened in the block timed."""
    from drpo_graph.storage.postgres import database

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


async def run_all(
    settings: Settings, storage: Storage, num_runs: int, *, waits: Waits | None = None, limit_s: float | None = None
) -> list[RunResult]:
    """Return the results of so many runs at once.

    Raises:
        TimeoutError: they took longer than they may.
    """
    options = RunOptions(checkpoint=storage, writes_files=False)

    async def run(name: str) -> RunResult:
        RUN.set(name)
        started_at = time.monotonic()
        result = await optimize(QUERIES, settings=settings, thread_id=name, options=options)
        if waits is not None:
            waits.running_s += time.monotonic() - started_at
        return result

    async with asyncio.timeout(limit_s):
        return await asyncio.gather(*(run(f"run-{number}") for number in range(num_runs)))


@dataclass(frozen=True)
class Outcome:
    """What the runs were and took."""

    results: list[RunResult]
    expected: RunResult
    wall_s: float
    cpu_s: float
    memory: int
    """Bytes at the peak beyond those before."""
    size: int
    num_events: int
    num_leases: int

    @property
    def num_right(self) -> int:
        """How many ended as on SQLite."""
        name = {"thread_id": self.expected.thread_id}
        return sum(one.model_copy(update=name) == self.expected for one in self.results)


def measure(num_runs: int, latency_s: float, *, waits: Waits, limit_s: float) -> Outcome:
    """Carry the runs out."""
    with (
        tempfile.TemporaryDirectory() as folder,
        run_postgres() as postgres,
        spawn_fake_server(
            "tests.support.oracle:build_responder",
            config={"seed": 0},
            options=ServerOptions(latency=Latency(median_s=latency_s)),
        ) as server,
    ):
        settings = make_settings(server.base_url, 256)
        (expected,) = asyncio.run(run_all(settings, SqliteStorage(Path(folder) / "runs.sqlite"), 1))
        uri = postgres.make_database()
        calm_collector()
        memory, cpu, started = psutil.Process(os.getpid()).memory_info().rss, time.process_time(), time.monotonic()
        results = asyncio.run(run_all(settings, PostgresStorage(uri), num_runs, waits=waits, limit_s=limit_s))
        wall_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (found,) = query(
            uri,
            "SELECT pg_database_size(current_database()), (SELECT count(*) FROM drpo_events), "
            "(SELECT count(*) FROM drpo_leases)",
        )
        return Outcome(results, expected, wall_s, cpu_s, peak - memory, *found)


def report(outcome: Outcome, waits: Waits) -> None:
    """Print what was measured."""
    num_runs = len(outcome.results)
    num_calls = sum(usage.calls for result in outcome.results for usage in result.usage_by_role.values())
    print(f"{num_runs} runs at once: {outcome.num_right} ended as on SQLite, {outcome.num_leases} leases left")
    print(
        f"{num_calls} calls in {outcome.wall_s:.1f} s: {num_calls / outcome.wall_s:.0f} per second, "
        f"{1000 * outcome.cpu_s / num_calls:.1f} ms of CPU each"
    )
    print(f"memory per run at the peak: {outcome.memory / num_runs / 1e6:.2f} MB")
    print(f"database: {outcome.size / num_runs / 1e6:.2f} MB and {outcome.num_events / num_runs:.0f} events per run")
    print(
        f"a run waits for the database {waits.waiting_s / waits.running_s:.0%} of its time; "
        f"{waits.num / num_calls:.1f} waits per call, each {1000 * waits.queue_s / waits.num:.1f} ms for a connection "
        f"and {1000 * waits.statement_s / waits.num:.1f} ms for its statements"
    )


def main() -> int:
    """Measure and report; exit code 1 if a run ended otherwise than on SQLite, or not in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2, help="of the model, in seconds")
    parser.add_argument("--limit", type=float, default=900, help="that the runs may take, in seconds")
    given = parser.parse_args()
    # For what no timeout reaches.
    faulthandler.dump_traceback_later(given.limit + 300, exit=True)
    with timed_database() as waits:
        try:
            outcome = measure(given.runs, given.latency, waits=waits, limit_s=given.limit)
        except TimeoutError:
            print(f"{given.runs} runs at once have not ended in {given.limit:.0f} s", file=sys.stderr)
            return 1
    report(outcome, waits)
    return 1 if outcome.num_right < given.runs or outcome.num_leases else 0


if __name__ == "__main__":
    sys.exit(main())
