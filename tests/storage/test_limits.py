"""A limit of the operating system is named as what it is, though SQLite keeps no number of what the system said."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drpo_graph.errors import CheckpointError
from drpo_graph.safety.limits import limit_of
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.sqlite_file import SqliteStorage


@contextmanager
def limited(kind: int, allowed: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


async def write(path: Path, number: int) -> None:
    async with SqliteStorage(path).open_run("t") as checkpoint:
        for key in range(number):
            await Archive(checkpoint.store, "t").put("calls", f"{key}", {"text": "x" * 5000})


async def test_a_limit_on_file_sizes_is_told_with_its_size_and_what_was_committed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    await write(path, 3)
    allowed = path.stat().st_size + 100_000
    with limited(resource.RLIMIT_FSIZE, allowed), pytest.raises(CheckpointError) as caught:
        await write(path, 200)
    assert str(caught.value) == (
        f"Checkpoint {path}: a file may not grow beyond {allowed} bytes. Raise the limit (`ulimit -f`) and run the "
        "command again, or, where the run had begun, `drpo resume`: what was committed is kept."
    )
    async with SqliteStorage(path).open_for_reading() as reader:
        assert len(await Archive(reader.store, "t").get_all("calls")) >= 3


async def test_too_many_open_files_are_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    await write(path, 1)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    for room in range(4):
        with limited(resource.RLIMIT_NOFILE, free + room), pytest.raises(CheckpointError, match="ulimit -n"):
            await write(path, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "quota"),
        (OSError(24, "Too many open files"), "too many files"),
        (OSError(27, "File too large"), "grow any larger"),
        (OSError(5, "Input/output error"), None),
        (ValueError("28"), None),
    ],
)
def test_a_limit_is_known_by_its_number(error: Exception, words: str | None) -> None:
    limit = limit_of(error)
    assert (limit is None) if words is None else (limit is not None and words in limit.what)
