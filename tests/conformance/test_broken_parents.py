"""A parent that has a checkpointer and no store is broken off anywhere, built anew, and goes on where it was."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from drpo_graph.errors import ModelCallError
from drpo_graph.events.schema import ICLStarted, LevelStarted, RunStarted, parse_event
from drpo_graph.settings.settings import Settings
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.icl.test_loop import Steady
from tests.support.command import finished_keys, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.oracle import build_responder

NAMES = [name for name in CASES if name != "ICL"]
CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}


class Failing:
    """Answers as the models do, so many times; then refuses the key."""

    def __init__(self) -> None:
        self.num_left: float = float("inf")
        self._world, self._steady = build_responder(seed=3), Steady()

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the next reply."""
        self.num_left -= 1
        if self.num_left < 0:
            return Reply(status=401, error_message="Incorrect API key provided.")
        return (self._steady if " plan " in str(body) else self._world)(body)


@pytest.fixture
def models() -> Failing:
    return Failing()


@pytest.fixture
def server(models: Failing) -> Iterator[FakeServer]:
    with serve(models, ServerOptions()) as running:
        yield running


@asynccontextmanager
async def built(name: str, settings: Settings, path: Path) -> AsyncIterator[Any]:
    """Build the graph as a new process would, with nothing but a checkpointer."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        yield CASES[name].build(settings, {"checkpointer": saver})
        # LangGraph raises a node's error while graphs inside its siblings still write down that they were cancelled,
        # and a connection that is closed in the middle of a write stays open, with its lock.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=5)


@pytest.mark.parametrize("name", [*NAMES, "ICL"])
async def test_a_graph_goes_on_wherever_it_was_broken_off(
    name: str, server: FakeServer, models: Failing, tmp_path: Path
) -> None:
    settings, given = make_settings(server.base_url, depth=3), CASES[name].given
    async with built(name, settings, tmp_path / "unbroken.sqlite") as graph:
        unbroken = found_in(await graph.ainvoke(given, CONFIG))
    num_calls = len(finished_keys(server))
    assert num_calls > 10
    for num_left in range(1, num_calls, 2):
        before, path = len(finished_keys(server)), tmp_path / f"{num_left}.sqlite"
        models.num_left = num_left
        async with built(name, settings, path) as graph:
            with pytest.raises(ModelCallError):
                await graph.ainvoke(given, CONFIG)
        models.num_left = float("inf")
        async with built(name, settings, path) as graph:
            assert found_in(await graph.ainvoke(None, CONFIG)) == unbroken
        keys = finished_keys(server)[before:]
        assert len(keys) == len(set(keys)) == num_calls


@pytest.mark.parametrize("name", [*NAMES, "ICL"])
@pytest.mark.parametrize("num_left", [2, 6])
async def test_a_graph_tells_once_that_it_goes_on(
    name: str, num_left: int, server: FakeServer, models: Failing, tmp_path: Path
) -> None:
    settings, given, path = make_settings(server.base_url, depth=3), CASES[name].given, tmp_path / "c.sqlite"
    models.num_left = num_left
    async with built(name, settings, path) as graph:
        with pytest.raises(ModelCallError):
            await graph.ainvoke(given, CONFIG)
    models.num_left = float("inf")
    events = []
    async with built(name, settings, path) as graph:
        async for _, told in graph.astream(None, CONFIG, stream_mode="custom", subgraphs=True):
            events.append(parse_event(told))
    started = [place for place, one in enumerate(events) if isinstance(one, RunStarted | ICLStarted)]
    assert started == [0]
    first = events[0]
    assert isinstance(first, RunStarted | ICLStarted)
    assert first.is_resumed
    if isinstance(first, RunStarted):
        assert isinstance(events[1], LevelStarted)
