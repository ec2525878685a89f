"""A database that goes away stops the run in one line and loses nothing; a short outage is waited out."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.storage.archive import Archive
from drpo_graph.storage.postgres import PostgresStorage, database
from tests.storage.postgres.test_runs import START, assert_same
from tests.support.command import KEY, Drpo, assert_one_line, finish, finished_keys, list_runs, spawn_drpo, wait_for
from tests.support.fake_server import FakeServer
from tests.support.postgres import PostgresServer, query, run_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A database server to kill."""
    with run_postgres() as server:
        yield server


def start(uri: str, folder: Path, server: FakeServer, *, num_calls: int) -> "subprocess.Popen[str]":
    """Start a run and return when it has made some calls."""
    before = len(finished_keys(server))
    environment = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY}
    run = spawn_drpo(*START, "--display", "none", "--checkpoint", uri, folder=folder, environment=environment)
    wait_for(lambda: len(finished_keys(server)) - before >= num_calls)
    return run


@pytest.mark.parametrize("num_calls", [3, 12, 24])
def test_a_killed_database_stops_the_run_and_restarted_it_ends_as_if_unbroken(
    num_calls: int, drpo: Drpo, folder: Path, mortal: PostgresServer, slow_world: FakeServer, unbroken: Path
) -> None:
    uri = mortal.make_database()
    run = start(uri, folder, slow_world, num_calls=num_calls)
    mortal.kill()
    outcome = finish(run)
    assert_one_line(outcome, 1, f"Checkpoint {uri}", "drpo resume", "what was committed is kept")
    assert not (folder / "drpo_runs" / "t" / "result.json").exists()
    asked = len(slow_world.log)
    mortal.start()
    committed = {key for (key,) in query(uri, "SELECT key FROM store WHERE prefix = 'drpo.t.calls'")}
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "interrupted"}
    environment = {"OPENAI_BASE_URL": slow_world.base_url, "OPENAI_API_KEY": KEY}
    resumed = spawn_drpo(
        "resume", "t", "--display", "none", "--checkpoint", uri, folder=folder, environment=environment
    )
    assert finish(resumed).code == 0
    assert_same(folder / "drpo_runs" / "t", unbroken)
    num_made = sum(entry["event"] == "start" for entry in slow_world.log[asked:])
    (num_calls_in_all,) = query(uri, "SELECT count(*) FROM store WHERE prefix = 'drpo.t.calls'")[0]
    # Not one committed call is made again. Beside the calls, an endpoint may be asked what it can do.
    assert num_made <= num_calls_in_all - len(committed)


async def test_an_outage_is_waited_out_that_ends_just_in_time(
    mortal: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 30.0)
    uri = mortal.make_database()
    async with PostgresStorage(uri, lease_s=120).open_run("t") as checkpoint:
        archive = Archive(checkpoint.store, "t")
        await asyncio.gather(*(archive.put("rollouts", f"old{number}", {}) for number in range(30)))
        mortal.kill()
        writes = [asyncio.create_task(archive.put("rollouts", f"new{number}", {})) for number in range(8)]
        # Pauses that double would end after 15 s and after 31 s.
        await asyncio.sleep(17)
        await asyncio.to_thread(mortal.start)
        await asyncio.gather(*writes)
    assert query(uri, "SELECT count(*) FROM store WHERE prefix = 'drpo.t.rollouts'") == [(38,)]


def test_a_short_outage_is_waited_out(
    folder: Path, mortal: PostgresServer, slow_world: FakeServer, unbroken: Path
) -> None:
    uri = mortal.make_database()
    run = start(uri, folder, slow_world, num_calls=6)
    mortal.kill()
    time.sleep(1)
    mortal.start()
    outcome = finish(run)
    assert (outcome.code, outcome.err) == (0, "")
    assert_same(folder / "drpo_runs" / "t", unbroken)
    events = [event for (event,) in query(uri, "SELECT event FROM drpo_events ORDER BY position")]
    assert events == (folder / "drpo_runs" / "t" / "events.jsonl").read_text().splitlines()
