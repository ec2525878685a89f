import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.served import KEY, Runs, VllmServer


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def server(vllm_folder: Path) -> Iterator[VllmServer]:
    """A server that answers; a test may kill it, if it starts it again."""
    running = _make_server(vllm_folder)
    running.start()
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture
def second_server(vllm_folder: Path) -> Iterator[VllmServer]:
    """Another server of the same model."""
    running = _make_server(vllm_folder)
    running.start()
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def runs(vllm_folder: Path) -> Runs:
    return Runs(vllm_folder)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the servers."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)


def _make_server(folder: Path) -> VllmServer:
    python, checkpoint = os.environ.get("VLLM_PYTHON"), os.environ.get("VLLM_CHECKPOINT")
    if not python or not checkpoint:
        pytest.skip("needs vLLM for the CPU and a checkpoint: `make test-vllm` sets both up")
    return VllmServer(python, checkpoint, folder)
