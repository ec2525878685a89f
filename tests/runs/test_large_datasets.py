"""Datasets of any size: what a run keeps of them, and what reaches the models of a conversation."""

import json
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import cast

import pytest
from langgraph.store.base import Op, Result
from langgraph.store.memory import InMemoryStore

from drpo_graph import optimize, resume
from drpo_graph.data.datasets import load_queries
from drpo_graph.errors import BudgetSpentError, DatasetError, FingerprintMismatchError
from drpo_graph.events.schema import CollectionStarted, Event, ICLStarted
from drpo_graph.icl import optimize_icl
from drpo_graph.oirl.collection import collect_demonstrations
from drpo_graph.records import Query, Turn
from drpo_graph.runs.runner import RunOptions
from drpo_graph.search.levels import draw_queries, order_drawn
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from tests.support.fake_replies import Reply
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder

KINDS = ("open", "knowledge", "unsafe")
SMALL = {"depth": 2, "beam_size": 1, "n_actions": 1, "queries_per_level": 2}


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeServer]:
    """A synthetic world behind HTTP."""
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    async with FakeServer(build_responder(seed=3), ServerOptions()) as server:
        yield server


def settings_for(server: FakeServer, **values: object) -> Settings:
    return build_settings({"model": "openai:world", "base_url": server.base_url, **SMALL, **values})


def make_queries(number: int) -> list[Query]:
    return [Query(id=f"q-{n}", text=f"Question {n}?", kind=KINDS[n % 3]) for n in range(number)]


class CountingStore(InMemoryStore):
    """Notes how many operations come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations."""
        given = list(ops)
        self.sizes.append(len(given))
        return await super().abatch(given)


async def test_records_are_written_in_batches_that_a_database_takes() -> None:
    store = CountingStore()
    archive = Archive(store, "t")
    await archive.put_all("queries", {f"q-{n}": {"n": n} for n in range(1201)})
    assert store.sizes == [500, 500, 201]
    assert len(await archive.get_all("queries")) == 1201


@pytest.mark.parametrize(
    ("values", "num_kept"),
    [
        ({}, 1000),
        ({"num_queries": 50}, 50),
        ({"num_queries": 5000}, 1000),
        ({"query_policy": "stream", "queries_per_level": 100, "depth": 9}, 2800),
        ({"pool_size": 2000}, 2000),
    ],
)
def test_run_keeps_of_a_large_dataset_what_it_can_use(values: dict[str, object], num_kept: int) -> None:
    settings = build_settings({"model": "openai:m", **values})
    drawn = draw_queries(make_queries(9000), settings)
    assert len(drawn) == len({one.id for one in drawn}) == num_kept
    counts = [sum(one.kind == kind for one in drawn) for kind in KINDS]
    assert max(counts) - min(counts) <= 1
    assert draw_queries(drawn, settings) == drawn
    assert len(order_drawn(drawn, settings)) == num_kept


def test_small_dataset_is_kept_whole_and_may_not_be_asked_for_more() -> None:
    queries = make_queries(1000)
    assert draw_queries(queries, Settings()) == tuple(queries)
    with pytest.raises(DatasetError, match="7 queries were asked for, but the dataset has 5"):
        draw_queries(queries[:5], build_settings({"num_queries": 7}))


async def test_what_a_checkpoint_holds_does_not_grow_with_the_dataset(server: FakeServer, tmp_path: Path) -> None:
    sizes, results = [], []
    for number in (1500, 15_000):
        place = tmp_path / f"{number}.sqlite"
        result = await optimize(
            make_queries(number),
            settings=settings_for(server),
            thread_id="t",
            options=RunOptions(checkpoint=place, writes_files=False),
        )
        results.append(result)
        with sqlite3.connect(place) as database:
            (num_rows,) = database.execute("SELECT count(*) FROM store WHERE prefix LIKE '%.queries'").fetchone()
            assert num_rows == 1000
        sizes.append(place.stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]
    assert all(one.status == "done" and one.evidence is not None for one in results)


async def begin_collection(rows: list[dict[str, str]], settings: Settings, options: RunOptions) -> None:
    await collect_demonstrations(rows, ["Think."], settings=settings, thread_id="t", options=options)


async def begin_icl(rows: list[dict[str, str]], settings: Settings, options: RunOptions) -> None:
    await optimize_icl(rows, settings=settings, thread_id="t", options=options)


def stop_at_start(event: Event) -> None:
    if isinstance(event, CollectionStarted | ICLStarted):
        raise BudgetSpentError("Enough is seen.", resume_flags="")


@pytest.mark.parametrize(("begin", "kind"), [(begin_collection, "questions"), (begin_icl, "queries")])
@pytest.mark.parametrize(
    "number",
    # More than one batch, and more than the values of one statement that SQLite takes.
    [1200, pytest.param(60_000, marks=pytest.mark.slow)],
)
async def test_runs_that_use_every_row_store_each_once(
    server: FakeServer, tmp_path: Path, begin: Callable[..., Awaitable[None]], kind: str, number: int
) -> None:
    rows = [{"query": f"Question {n}?", "answer": str(n)} for n in range(number)]
    place = tmp_path / "c.sqlite"
    with pytest.raises(BudgetSpentError):
        await begin(
            rows, settings_for(server), RunOptions(checkpoint=place, writes_files=False, sinks=(stop_at_start,))
        )
    with sqlite3.connect(place) as database:
        count = "SELECT count(*) FROM store WHERE prefix LIKE ?"
        assert database.execute(count, (f"%.{kind}",)).fetchone() == (number,)
        (largest,) = database.execute("SELECT max(length(value)) FROM store WHERE prefix LIKE '%.run'").fetchone()
        assert largest < number + 10_000
        (checkpoints,) = database.execute("SELECT max(length(checkpoint)) FROM checkpoints").fetchone()
        assert checkpoints < 100_000


async def test_stopped_run_goes_on_with_the_queries_it_drew(server: FakeServer, tmp_path: Path) -> None:
    queries, settings = make_queries(3000), settings_for(server)
    whole = RunOptions(checkpoint=tmp_path / "whole.sqlite", writes_files=False)
    expected = await optimize(queries, settings=settings, thread_id="t", options=whole)
    broken = RunOptions(checkpoint=tmp_path / "broken.sqlite", writes_files=False)
    with pytest.raises(BudgetSpentError):
        await optimize(queries, settings=settings_for(server, max_calls=4), thread_id="t", options=broken)
    with pytest.raises(FingerprintMismatchError, match="other data"):
        await resume("t", options=broken, changes={"max_calls": 500}, queries=queries[:2999])
    resumed = await resume("t", options=broken, changes={"max_calls": 500}, queries=queries)
    assert resumed.system_prompt == expected.system_prompt
    assert resumed.fingerprints["data"] == expected.fingerprints["data"]


async def test_held_out_queries_are_compared_with_the_whole_dataset(server: FakeServer) -> None:
    queries = make_queries(3000)
    with pytest.raises(DatasetError, match="share the ids"):
        await optimize(queries, settings=settings_for(server), validation=queries[:1])
    left_out = {one.id for one in queries} - {one.id for one in draw_queries(queries, settings_for(server))}
    shared = [one for one in queries if one.id in left_out][:1]
    with pytest.raises(DatasetError, match="share the ids"):
        await optimize(queries, settings=settings_for(server), validation=shared)


def test_memory_for_a_query_does_not_grow_with_their_number(tmp_path: Path) -> None:
    peaks = []
    for number in (2000, 20_000):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"query": f"Question {n}?"}) + "\n" for n in range(number)))
        tracemalloc.start()
        assert len(load_queries(path)) == number
        peaks.append(tracemalloc.get_traced_memory()[1] / number)
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    # Of a million, with room to spare, two gigabytes.
    assert peaks[1] < 1500


async def test_history_stands_before_the_query_and_is_shown_to_the_critic(server: FakeServer, tmp_path: Path) -> None:
    history = (Turn(role="user", content="I keep bees."), Turn(role="assistant", content="How many hives?"))
    row = {
        "messages": [
            {"role": "system", "content": "An app's own."},
            *(turn.model_dump() for turn in history),
            {"role": "user", "content": "Two of them."},
        ]
    }
    requests, respond = list[list[dict[str, str]]](), server.responder

    def note(body: dict[str, object]) -> Reply:
        requests.append(cast(list[dict[str, str]], body["messages"]))
        return respond(body)

    server.responder = note
    options = RunOptions(checkpoint=tmp_path / "c.sqlite", writes_files=False)
    await optimize([row], settings=settings_for(server), thread_id="t", options=options)
    asked = [one for one in requests if one[0]["role"] == "system"]
    expected = [*(turn.model_dump() for turn in history), {"role": "user", "content": "Two of them."}]
    assert asked
    assert all(one[1:] == expected for one in asked)
    judged = [one[-1]["content"] for one in requests if one[0]["role"] == "user"]
    assert judged
    assert any("I keep bees." in one and "How many hives?" in one and "<answer-" in one for one in judged)
    assert not any("An app's own." in str(one) for one in requests)
