from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from drpo_graph.records import RunResult
from tests.support.command import SMALL, enter, read_result, serve_world
from tests.support.fake_server import FakeServer


@pytest.fixture(scope="session")
def world() -> Iterator[FakeServer]:
    """A server that answers at once, knows one model and wants a key."""
    with serve_world() as server:
        yield server


@pytest.fixture(scope="session")
def slow_world() -> Iterator[FakeServer]:
    """The same world, 0.3 s away."""
    with serve_world(latency_s=0.3) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """An empty working folder, and an environment that leads to the world."""
    return enter(tmp_path, monkeypatch, world)


@pytest.fixture(scope="session")
def unbroken(world: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """What the small run finds when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch, world)
        assert _run(["optimize", *SMALL, "--thread-id", "t", "--display", "none"], is_debug=False) == 0
    return read_result(folder / "drpo_runs")
