"""A disk that fills up stops the run in one line; with room again, what was committed is there."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from langgraph.store.base import PutOp

from drpo_graph.errors import CheckpointError
from drpo_graph.storage.postgres import PostgresStorage, database
from tests.support.postgres import PostgresServer, query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 110 MB; PostgreSQL takes half of it for itself."""
    folder = tmp_path_factory.mktemp("d")
    command = ["mount", "-t", "tmpfs", "-o", "size=110m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            return


async def test_what_was_committed_before_the_disk_was_full_is_kept(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 3.0)
    server = PostgresServer(small_disk / "data")
    committed: set[str] = set()

    async def write_until_it_fails(uri: str) -> None:
        async with PostgresStorage(uri).open_run("t") as checkpoint:
            for number in range(10_000):
                if number == 10:
                    fill(small_disk / "ballast")
                key = f"{number}"
                await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), key, {"text": key * 20_000})])
                committed.add(key)

    try:
        uri = server.make_database()
        with pytest.raises(CheckpointError, match="`drpo resume`: what was committed is kept") as caught:
            await write_until_it_fails(uri)
        assert "\n" not in str(caught.value)
        assert len(committed) >= 10
        (small_disk / "ballast").unlink()
        server.start()
        async with PostgresStorage(uri).open_run("t") as checkpoint:
            await checkpoint.store.abatch([PutOp(("drpo", "t", "calls"), "more", {"text": "more"})])
        assert {key for (key,) in query(uri, "SELECT key FROM store")} >= committed | {"more"}
    finally:
        server.stop()
