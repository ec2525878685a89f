from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.cli.app import _run
from drpo_graph.records import RunResult
from tests.support.command import KEY, SMALL, Drpo, read_result, serve
from tests.support.fake_server import FakeServer, Latency, ServerOptions
from tests.support.oracle import build_responder


@pytest.fixture(scope="session")
def world() -> Iterator[FakeServer]:
    """A server that answers at once, knows one model and wants a key."""
    with serve(build_responder(seed=3), ServerOptions(models=["world"], api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="session")
def slow_world() -> Iterator[FakeServer]:
    """The same world, 0.3 s away."""
    options = ServerOptions(models=["world"], api_key=KEY, latency=Latency(0.3))
    with serve(build_responder(seed=3), options) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    """An empty working folder, and an environment that leads to the world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", world.base_url)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("VLLM_BASE_URL", "FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def drpo(capsys: pytest.CaptureFixture[str]) -> Drpo:
    """The command line in this process."""
    return Drpo(capsys)


@pytest.fixture(scope="session")
def unbroken(world: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """What the small run finds when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", world.base_url)
        assert _run(["optimize", *SMALL, "--thread-id", "t", "--display", "none"], is_debug=False) == 0
    return read_result(folder / "drpo_runs")
