"""A run that never began leaves its name to the next one: whatever of its first writes fails, or of a user's parts."""

import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from langgraph.store.base import Op, PutOp, Result
from langgraph.store.sqlite import SqliteStore

from drpo_graph import Parts, RunOptions, optimize, resume
from drpo_graph.errors import CheckpointError, DatasetError, DRPOError, RunExistsError, RunNotFoundError, UsageError
from drpo_graph.records import Query, RunResult
from drpo_graph.runs.reading import list_names
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.places import find_storage
from tests.runs.test_fault_matrix import make_settings
from tests.support.command import serve
from tests.support.fake_server import ServerOptions
from tests.support.oracle import build_responder
from tests.support.stored_runs import brief
from tests.support.world import World

QUERIES = World(seed=3).train_queries[:6]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")


@pytest.fixture(scope="module")
def settings() -> Iterable[Settings]:
    with serve(build_responder(seed=3), ServerOptions()) as server:
        yield make_settings(server.base_url, depth=2)


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(checkpoint=tmp_path / "runs.sqlite", log_dir=tmp_path / "run")


def found(result: RunResult) -> object:
    return result.model_dump(exclude={"thread_id", "duration_s"})


def full_from(number: int) -> Callable[[SqliteStore, Iterable[Op]], list[Result]]:
    """Return what stands in for a store's batches on a disk that is full from the writing of that number on."""
    batch, num_written = SqliteStore.batch, 0

    def write(store: SqliteStore, ops: Iterable[Op]) -> list[Result]:
        nonlocal num_written
        given = list(ops)
        if any(isinstance(op, PutOp) and op.namespace[0] == "drpo" for op in given):
            num_written += 1
            if num_written >= number:
                raise sqlite3.OperationalError("database or disk is full")
        return batch(store, given)

    return write


@pytest.mark.parametrize("number", range(1, 7))
async def test_a_disk_that_is_full_at_the_start_leaves_a_run_that_goes_on_or_none(
    number: int, options: RunOptions, settings: Settings
) -> None:
    whole = await optimize(
        QUERIES,
        settings=settings,
        thread_id="whole",
        options=RunOptions(checkpoint=options.checkpoint, writes_files=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "batch", full_from(number))
        with pytest.raises(CheckpointError, match="the disk is full"):
            await optimize(QUERIES, settings=settings, thread_id="t", options=options)
    storage = find_storage(options.checkpoint)
    if "t" in await list_names(storage):
        result = await resume("t", options=options)
    else:
        assert number <= 2
        with pytest.raises(RunNotFoundError):
            await resume("t", options=options)
        result = await optimize(QUERIES, settings=settings, thread_id="t", options=options)
    assert found(result) == found(whole)


async def test_a_record_without_what_it_was_given_says_so_and_leaves_its_name(
    options: RunOptions, settings: Settings
) -> None:
    """Earlier versions left such records where the disk was full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "batch", full_from(3))
        with pytest.raises(CheckpointError):
            await optimize(QUERIES, settings=settings, thread_id="t", options=options)
    with sqlite3.connect(options.checkpoint) as base:
        base.execute("DELETE FROM store WHERE key = 'input'")
    with pytest.raises(UsageError, match=r"has not begun: .* Start it again under the same name"):
        await resume("t", options=options)
    assert (await optimize(QUERIES, settings=settings, thread_id="t", options=options)).thread_id == "t"


class App:
    """A responder that fails until it is mended."""

    error: Exception | None = ValueError("a bug of the user's")

    async def respond(self, prompt: str, query: Query) -> str:
        """Return an answer."""
        if self.error is not None:
            raise self.error
        return World(seed=3).respond(prompt, query.text)


async def test_a_run_that_a_part_ended_before_its_first_call_leaves_its_name(
    options: RunOptions, settings: Settings
) -> None:
    app = App()
    parts = Parts(responder=app, critic=brief)
    with pytest.raises((DRPOError, ValueError), match="a bug of the user's"):
        await optimize(QUERIES, settings=settings, thread_id="t", options=options, parts=parts)
    app.error = None
    result = await optimize(QUERIES[:4], settings=settings, thread_id="t", options=options, parts=parts)
    assert result.thread_id == "t"
    with pytest.raises(RunExistsError):
        await optimize(QUERIES, settings=settings, thread_id="t", options=options, parts=parts)


async def test_a_run_that_is_refused_inside_the_graph_leaves_nothing(
    options: RunOptions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(given: object, *, label: str, is_optional: bool = False) -> Mapping[str, str]:
        raise DatasetError("no such queries")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["drpo_graph.nodes.start_run"], "read_queries", refuse)
        with pytest.raises(DatasetError):
            await optimize(QUERIES, settings=settings, thread_id="t", options=options)
    assert await list_names(find_storage(options.checkpoint)) == []
    assert (await optimize(QUERIES, settings=settings, thread_id="t", options=options)).thread_id == "t"
