"""Many runs on few connections: all end, and a database that is only busy is no outage."""

import asyncio
import random
from collections import Counter

import psycopg
import pytest

from drpo_graph.events.schema import Warned
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.postgres import PostgresStorage, database
from tests.support.postgres import query


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_run_ends_whose_last_events_wait_for_a_busy_connection(uri: str) -> None:
    storage, generator, ended = PostgresStorage(uri), random.Random(0), asyncio.Event()

    async def run(name: str) -> None:
        async with storage.open_run(name) as checkpoint:
            for sink in checkpoint.sinks:
                sink(Warned(run_id=name, message="m"))
            # As long as events are gathered, and a little longer: then they wait for a connection.
            await asyncio.sleep(0.05 + generator.uniform(0, 0.02))

    async with storage.open_run("keep") as checkpoint:
        archive = Archive(checkpoint.store, "keep")

        async def load(number: int) -> None:
            while not ended.is_set():
                await archive.put("run", f"{number}", {"x": 1})

        loads = [asyncio.create_task(load(number)) for number in range(14)]
        num_hung = 0
        for part in range(6):
            runs = {asyncio.create_task(run(f"{part}-{number}")) for number in range(15)}
            _, hung = await asyncio.wait(runs, timeout=60)
            num_hung += len(hung)
            for one in hung:
                one.cancel()
        ended.set()
        await asyncio.gather(*loads)
    assert num_hung == 0
    stored = query(uri, "SELECT count(DISTINCT thread_id), count(*) FROM drpo_events")
    assert stored == [(90, 90)]


async def slow_down(uri: str) -> None:
    """Let each write of a record take 0.1 s."""
    async with PostgresStorage(uri).open_run("first"):
        pass
    query(
        uri,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$",
    )
    query(uri, "CREATE TRIGGER slow BEFORE INSERT ON store FOR EACH STATEMENT EXECUTE FUNCTION slow()")


async def test_leases_are_renewed_while_writes_queue_for_longer_than_they_last(uri: str) -> None:
    await slow_down(uri)
    storage = PostgresStorage(uri, lease_s=2.0)

    async def run(name: str) -> str:
        async with storage.open_run(name) as checkpoint:
            archive = Archive(checkpoint.store, name)
            await asyncio.gather(*(archive.put("rollouts", f"{number}", {}) for number in range(16)))
        return "ended"

    ends = await asyncio.gather(*(run(f"t{number}") for number in range(20)), return_exceptions=True)
    assert Counter(map(str, ends)) == {"ended": 20}


async def test_a_table_that_is_closed_for_long_is_waited_for(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 1.0)
    async with PostgresStorage(uri, lease_s=3.0).open_run("t") as checkpoint:
        archive = Archive(checkpoint.store, "t")
        async with await psycopg.AsyncConnection.connect(uri) as connection:
            await connection.execute("LOCK TABLE store IN ACCESS EXCLUSIVE MODE")
            # More than there are connections: some wait for one.
            writes = [asyncio.create_task(archive.put("rollouts", f"{number}", {})) for number in range(12)]
            await asyncio.sleep(2.5)
            assert not any(one.done() for one in writes)
            await connection.rollback()
        await asyncio.gather(*writes)
    assert query(uri, "SELECT count(*) FROM store WHERE prefix = 'drpo.t.rollouts'") == [(12,)]


async def test_room_is_given_back_beside_a_worker_without_closing_its_tables(uri: str) -> None:
    storage = PostgresStorage(uri)
    async with storage.open_run("t") as checkpoint:
        await Archive(checkpoint.store, "t").put_all("calls", {f"{n}": {"text": "x" * 2000} for n in range(2000)})
        query(uri, "DELETE FROM store WHERE prefix = 'drpo.t.calls' AND key <> '1999'")
        # A reader's lock, which a rewrite would wait for, and all others behind it.
        async with await psycopg.AsyncConnection.connect(uri) as connection:
            await connection.execute("SELECT 1 FROM store LIMIT 1")
            await asyncio.wait_for(storage.reclaim(), 20)
        worked_on = await storage.measure()
    await storage.reclaim()
    assert await storage.measure() < worked_on / 2
