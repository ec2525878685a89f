from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import KEY, serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.oracle import build_responder


@pytest.fixture(scope="session")
def docs_world() -> Iterator[FakeServer]:
    """A server that takes every model's name."""
    with serve(build_responder(seed=3), ServerOptions(api_key=KEY)) as server:
        yield server


@pytest.fixture
def world(docs_world: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """An empty working folder, and an environment that leads to the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", docs_world.base_url)
    return docs_world
