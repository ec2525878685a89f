"""What is put into the database comes back as it was, all of it, and its tables can be made by many at once."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.store.base import BaseStore

from drpo_graph.errors import CheckpointError, LeaseLostError
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.postgres import PostgresStorage, schema
from drpo_graph.storage.postgres.savers import PostgresStore
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.sealed_store import BoundStore
from tests.support.command import ROOT
from tests.support.postgres import query

HARD = {
    "zero": "a\0b",
    "lone": "\ud83d and \udc00",
    "b": [1, 1.0, -0.0, 1e300, 0.1 + 0.2, 2**70, True, None],
    "a": {"z": "ä 中 😀", "long key": "\\u0000", "": '"quoted"'},
}


@pytest.fixture
async def checkpoint(uri: str) -> AsyncIterator[Checkpoint]:
    """A database that is open for work."""
    async with PostgresStorage(uri).open_run("t") as opened:
        yield opened


async def test_a_value_comes_back_exactly(checkpoint: Checkpoint, uri: str) -> None:
    await Archive(checkpoint.store, "t").put("calls", "key", HARD)
    for store in (checkpoint.store, None):
        if store is None:
            async with PostgresStorage(uri).open_for_reading() as reader:
                found = await Archive(reader.store, "t").get("calls", "key")
        else:
            found = await Archive(store, "t").get("calls", "key")
        # As JSON: the order of keys and the kind of each number count.
        assert json.dumps(found) == json.dumps(HARD)
    readable = {key: value for key, value in HARD.items() if key not in ("zero", "lone")}
    await Archive(checkpoint.store, "t").put("calls", "readable", readable)
    assert query(uri, "SELECT (value->>'json')::json->'a'->>'z' FROM store WHERE key = 'readable'") == [("ä 中 😀",)]


async def test_every_record_of_many_that_were_put_at_once_is_found(checkpoint: Checkpoint) -> None:
    values = {f"{number:04d}": {"number": number} for number in range(1234)}
    await Archive(checkpoint.store, "t").put_all("calls", values)
    assert await Archive(checkpoint.store, "t").get_all("calls") == values
    assert await Archive(checkpoint.store, "other").get_all("calls") == {}


async def test_texts_that_databases_refuse_may_stand_in_a_checkpoint(checkpoint: Checkpoint) -> None:
    values = {"initial_prompt": HARD["zero"], "system_prompt": HARD["lone"], "run_id": "t", "level": 3}
    saved = {**empty_checkpoint(), "channel_values": values, "channel_versions": dict.fromkeys(values, 1)}
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    await checkpoint.saver.aput(config, saved, {}, dict.fromkeys(values, 1))  # type: ignore[arg-type]
    found = await checkpoint.saver.aget_tuple(config)  # type: ignore[arg-type]
    assert found is not None
    assert found.checkpoint["channel_values"] == values


async def test_a_reader_cannot_write(checkpoint: Checkpoint, uri: str) -> None:
    async def write(store: BaseStore) -> None:
        await Archive(store, "t").put("calls", "key", {})

    async def write_as_reader() -> None:
        async with PostgresStorage(uri).open_for_reading() as reader:
            await write(reader.store)

    await write(checkpoint.store)
    with pytest.raises(CheckpointError, match="read-only"):
        await write_as_reader()


async def test_runs_of_a_process_share_its_connections(uri: str) -> None:
    storage = PostgresStorage(uri)
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    async def work(number: int) -> None:
        async with storage.open_run(f"t{number}") as opened:
            await Archive(opened.store, f"t{number}").put("run", "input", {"number": number})
            entered.release()
            await leave.wait()

    runs = [asyncio.create_task(work(number)) for number in range(40)]
    for _ in runs:
        await entered.acquire()
    assert len(query(uri, "SELECT 1 FROM drpo_leases")) == 40
    used = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert query(uri, used)[0][0] <= 10
    leave.set()
    await asyncio.gather(*runs)
    assert query(uri, "SELECT 1 FROM drpo_leases") == []


CREATE = """
import asyncio, sys
from drpo_graph.storage.postgres import PostgresStorage

async def work(number):
    async with PostgresStorage(sys.argv[1]).open_run(f"t{number}"):
        pass

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    await work(sys.argv[2])

asyncio.run(main())
"""


@pytest.mark.slow
def test_tables_are_made_once_by_processes_that_start_at_once(uri: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, uri, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert outcomes == [("", "", 0)] * 4
    versions = {"checkpoint_migrations": 10, "store_migrations": 4, "drpo_migrations": 3}
    assert {table: query(uri, f"SELECT count(*) FROM {table}")[0][0] for table in versions} == versions
    assert query(uri, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


async def test_a_block_that_fails_in_the_middle_has_written_nothing(checkpoint: Checkpoint, uri: str) -> None:
    assert isinstance(checkpoint.store, BoundStore)
    store = checkpoint.store.inner
    assert isinstance(store, PostgresStore)

    async def write(*, then: str) -> None:
        async with store._cursor() as cursor:
            await cursor.execute("INSERT INTO drpo_events VALUES ('t', 100, 'half')")
            if then == "fail":
                raise RuntimeError
            await asyncio.sleep(60)

    with pytest.raises(RuntimeError):
        await write(then="fail")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await write(then="wait")
    assert query(uri, "SELECT * FROM drpo_events") == []


async def test_of_two_values_put_at_one_key_the_later_stays(checkpoint: Checkpoint, uri: str) -> None:
    query(
        uri,
        """
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.value->>'json' LIKE '%slow%' THEN PERFORM pg_sleep(0.5); END IF;
            RETURN NEW;
        END $$
        """,
    )
    query(uri, "CREATE TRIGGER slow BEFORE INSERT ON store FOR EACH ROW EXECUTE FUNCTION slow()")
    archive = Archive(checkpoint.store, "t")
    await asyncio.gather(*(archive.put("learned", "key", {"value": value}) for value in ("slow", "fast")))
    assert query(uri, "SELECT (value->>'json')::json->>'value' FROM store WHERE key = 'key'") == [("fast",)]


async def test_checkpoints_of_a_lost_run_are_refused_in_our_words(uri: str) -> None:
    async def read() -> None:
        async with PostgresStorage(uri).open_run("t") as opened:
            query(uri, "UPDATE drpo_leases SET expires_at = now()")
            assert [one async for one in opened.saver.alist({"configurable": {"thread_id": "t"}})] == []

    with pytest.raises(LeaseLostError):
        await read()


async def test_who_brings_the_tables_up_to_date_for_ever_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_WAIT_S", 0.3)
    async with await psycopg.AsyncConnection.connect(uri, application_name="stuck") as connection:
        await connection.execute("SELECT pg_advisory_lock(hashtextextended('drpo_graph/migrations', 0))")
        with pytest.raises(CheckpointError, match=f"pid {connection.info.backend_pid}, application_name stuck"):
            async with PostgresStorage(uri).open_run("t"):
                pass
