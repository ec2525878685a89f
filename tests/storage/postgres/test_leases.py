"""One worker per run: whoever lost it begins no call and writes nothing, however it lost it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from langgraph.store.base import PutOp

from drpo_graph.errors import CheckpointError, LeaseLostError, RunLockedError
from drpo_graph.events.schema import Event, RolloutScored
from drpo_graph.runs.runner import RunOptions, optimize, resume
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.postgres import PostgresStorage
from tests.storage.postgres.test_runs import START, assert_same
from tests.storage.postgres.worker import SEARCH, THREAD
from tests.support.command import ROOT, Drpo, assert_one_line, finish, finished_keys, list_runs, wait_for
from tests.support.fake_server import FakeServer
from tests.support.postgres import dump, query

LEASE_S = 6.0
"""Longer than a worker's imports may keep its event loop from renewing."""


@pytest.fixture
def settings() -> Settings:
    roles = {f"{role}_model": "openai:world" for role in ("base", "metrics", "critic", "optimizer")}
    return build_settings({**roles, **SEARCH})


def spawn_worker(uri: str, folder: Path, *, lease_s: float = LEASE_S) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.storage.postgres.worker", uri, str(lease_s), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def is_waited_for(server: FakeServer) -> bool:
    """Return whether calls have been with the server for half its latency, and nothing has come or gone since."""
    log = list(server.log)
    num_open = sum(1 if entry["event"] == "start" else -1 for entry in log)
    last_at = max(entry["t_end"] if entry["event"] == "end" else entry["t_start"] for entry in log)
    return num_open > 0 and time.time() - last_at >= 0.1


async def test_a_second_worker_is_refused_and_leaves_the_first_alone(
    uri: str, folder: Path, settings: Settings
) -> None:
    options = RunOptions(checkpoint=PostgresStorage(uri), log_dir=folder / "run")
    first = asyncio.create_task(optimize(settings=settings, thread_id=THREAD, options=options))
    while not (folder / "run").exists():
        await asyncio.sleep(0.01)
    with pytest.raises(RunLockedError, match="being worked on by process"):
        await resume(THREAD, options=options)
    assert (await first).thread_id == THREAD


@pytest.mark.slow
def test_of_many_who_start_at_once_one_works(uri: str, folder: Path, unbroken: Path) -> None:
    workers = [spawn_worker(uri, folder / "run", lease_s=30) for _ in range(3)]
    outcomes = [finish(worker) for worker in workers]
    # Those that come after its end find it finished; those that come before are refused.
    assert 0 in {outcome.code for outcome in outcomes}
    refused = [outcome.err for outcome in outcomes if outcome.code]
    assert all(text.startswith(("RunLockedError", "RunExistsError")) for text in refused), refused
    assert_same(folder / "run", unbroken)


def test_a_run_whose_holder_was_elsewhere_is_free_when_the_lease_has_ended(drpo: Drpo, uri: str) -> None:
    assert drpo(*START, "--display", "none", "--checkpoint", uri).code == 0
    held = "INSERT INTO drpo_leases VALUES ('t', 'other', 'elsewhere', 1, NULL, 60, now() + make_interval(secs => %s))"
    query(uri, held, 60)
    refused = drpo("resume", "t", "--display", "none", "--checkpoint", uri)
    assert_one_line(refused, 1, "process 1 on elsewhere", "the run is free in ")
    query(uri, "DELETE FROM drpo_leases")
    query(uri, held, -0.1)
    assert drpo("resume", "t", "--display", "none", "--checkpoint", uri).code == 0
    assert query(uri, "SELECT * FROM drpo_leases") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_frozen_worker_that_wakes_after_a_takeover_writes_nothing(
    drpo: Drpo, uri: str, folder: Path, slow_world: FakeServer, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", slow_world.base_url)
    before = len(finished_keys(slow_world))
    frozen = spawn_worker(uri, folder / "run")
    # Not on its way with a call: one that was let go before the freeze reaches the server after it.
    wait_for(lambda: len(finished_keys(slow_world)) - before >= 6 and is_waited_for(slow_world))
    frozen.send_signal(signal.SIGSTOP)
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "running"}
    wait_for(lambda: list_runs(drpo, "--checkpoint", uri)["t"] != "running")
    taker = finish(spawn_worker(uri, folder / "run", lease_s=60))
    assert (taker.code, taker.err) == (0, "")
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    rows, num_asked = dump(uri), len(slow_world.log)
    frozen.send_signal(signal.SIGCONT)
    woken = finish(frozen)
    assert (woken.code, woken.out) == (1, "")
    assert woken.err.startswith("LeaseLostError: Run 't': this process has stopped")
    assert woken.err.count("\n") == 1
    assert dump(uri) == rows
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == files
    assert sum(entry["event"] == "start" for entry in slow_world.log[num_asked:]) == 0
    assert_same(folder / "run", unbroken)


@pytest.mark.parametrize("num_scored", [1, 4, 8])
async def test_a_worker_whose_run_is_taken_over_writes_nothing_after_it(
    num_scored: int, uri: str, folder: Path, settings: Settings
) -> None:
    scored: list[Event] = []

    def note(event: Event) -> None:
        if isinstance(event, RolloutScored):
            scored.append(event)

    options = RunOptions(checkpoint=PostgresStorage(uri), log_dir=folder / "run", sinks=(note,))
    losing = asyncio.create_task(optimize(settings=settings, thread_id=THREAD, options=options))
    while len(scored) < num_scored:
        await asyncio.sleep(0)
    query(uri, "UPDATE drpo_leases SET expires_at = now()")
    async with PostgresStorage(uri).open_run(THREAD):
        rows = dump(uri)
        with pytest.raises(LeaseLostError, match="ended or was taken over"):
            await losing
        assert dump(uri) == rows
    # Cancelled by its lease, and by nobody else.
    assert losing.cancelling() == 0


async def test_a_worker_that_cannot_renew_stops_before_its_lease_has_ended(
    uri: str, folder: Path, settings: Settings, slow_world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", slow_world.base_url)
    options = RunOptions(checkpoint=PostgresStorage(uri, lease_s=1.0), log_dir=folder / "run")
    running = asyncio.create_task(optimize(settings=settings, thread_id=THREAD, options=options))
    while not (folder / "run").exists():
        await asyncio.sleep(0.01)
    # Renewals wait for this lock; the writes of the run only read the row.
    async with await psycopg.AsyncConnection.connect(uri) as connection:
        await connection.execute("SELECT 1 FROM drpo_leases FOR UPDATE")
        with pytest.raises(LeaseLostError, match="could not be renewed in time"):
            await running
        num_begun = sum(entry["event"] == "start" for entry in slow_world.log)
        rows = dump(uri)
        await asyncio.sleep(0.5)
        assert sum(entry["event"] == "start" for entry in slow_world.log) == num_begun
        assert dump(uri) == rows


async def test_a_takeover_closes_the_connection_of_a_holder_that_froze_in_a_write(uri: str) -> None:
    async def freeze_in_a_write() -> None:
        async with PostgresStorage(uri).open_run(THREAD) as checkpoint:
            holder = query(uri, "SELECT holder FROM drpo_leases")[0][0]
            frozen = await psycopg.AsyncConnection.connect(uri)
            await frozen.execute("SELECT drpo_check_lease(%s, %s)", (THREAD, holder))
            await frozen.execute("INSERT INTO drpo_events VALUES (%s, 1, 'late')", (THREAD,))
            query(uri, "UPDATE drpo_leases SET expires_at = now()")
            async with PostgresStorage(uri).open_run(THREAD):
                with pytest.raises(psycopg.OperationalError):
                    await frozen.execute("SELECT 1")
                assert query(uri, "SELECT 1 FROM drpo_events") == []
            await frozen.close()
            # It is told when it writes.
            await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "late", {"text": "late"})])

    with pytest.raises(LeaseLostError):
        await freeze_in_a_write()
    assert query(uri, "SELECT 1 FROM store") == []


async def test_what_a_cancelled_run_leaves_behind_does_not_disturb_who_cancelled_it(uri: str) -> None:
    storage, done = PostgresStorage(uri, lease_s=0.6), []

    async def run() -> None:
        async with storage.open_run(THREAD) as checkpoint:

            async def write_late() -> None:
                await asyncio.sleep(0.8)
                try:
                    await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "late", {"text": "late"})])
                except CheckpointError as error:
                    done.append(str(error))

            late.append(asyncio.create_task(write_late()))
            await asyncio.sleep(60)

    late: list[asyncio.Task[None]] = []
    async with storage.open_run("other"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await run()
        # The caller's own work, when the lease would have ended and the late write comes.
        await asyncio.sleep(1.2)
    await asyncio.gather(*late)
    assert done == ["Run 't' has ended: this process writes nothing more of it."]
    assert query(uri, "SELECT 1 FROM store WHERE key = 'late'") == []


SET_BACK = "UPDATE drpo_leases SET expires_at = expires_at + interval '1 hour'"
"""What a lease looks like when the database's clock was set back by an hour."""


async def test_a_dead_workers_lease_holds_no_longer_when_the_databases_clock_was_set_back(uri: str) -> None:
    async with PostgresStorage(uri, lease_s=1.0).open_run(THREAD):
        pass
    held = "INSERT INTO drpo_leases VALUES ('t', 'other', 'elsewhere', 1, NULL, 1.0, clock_timestamp())"
    query(uri, held)
    query(uri, SET_BACK)
    async with asyncio.timeout(60), PostgresStorage(uri).open_run(THREAD):
        assert query(uri, "SELECT holder = 'other', expires_at < now() + interval '1 minute' FROM drpo_leases") == [
            (False, True)
        ]


async def test_a_live_workers_lease_holds_when_the_databases_clock_was_set_back(uri: str) -> None:
    async with PostgresStorage(uri, lease_s=3.0).open_run(THREAD) as checkpoint:
        query(uri, SET_BACK)
        with pytest.raises(RunLockedError):
            async with PostgresStorage(uri).open_run(THREAD):
                pass
        await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "key", {"text": "x"})])
    assert query(uri, "SELECT key FROM store") == [("key",)]


async def test_a_worker_stops_when_the_databases_clock_was_set_forward_and_its_run_is_free(uri: str) -> None:
    async def work() -> None:
        async with PostgresStorage(uri).open_run(THREAD) as checkpoint:
            query(uri, "UPDATE drpo_leases SET expires_at = expires_at - interval '1 hour'")
            await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "late", {"text": "late"})])

    with pytest.raises(LeaseLostError, match="drpo resume t"):
        await work()
    async with PostgresStorage(uri).open_run(THREAD) as checkpoint:
        await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "key", {"text": "x"})])
    assert query(uri, "SELECT key FROM store") == [("key",)]


RENEWAL = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%UPDATE drpo_leases SET%'"
)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_renewal_that_hangs_is_given_up_for_another(uri: str) -> None:
    async with PostgresStorage(uri, lease_s=24.0).open_run(THREAD):
        while not (found := query(uri, f"{RENEWAL} AND pid <> pg_backend_pid()")):
            await asyncio.sleep(0.1)
        os.kill(found[0][0], signal.SIGSTOP)
        try:
            # Longer than the lease: without another renewal it is lost.
            await asyncio.sleep(24.5)
        finally:
            os.kill(found[0][0], signal.SIGCONT)
