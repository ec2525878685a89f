"""A checkpoint or folder that cannot be written: one line that says so; what was committed is kept."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drpo_graph.records import RunResult
from tests.support.command import ROOT, SMALL, Drpo, assert_one_line, finish, finished_keys, list_runs, read_result
from tests.support.fake_server import FakeServer

START = ("optimize", *SMALL, "--thread-id", "t", "--display", "none")
HALF = ("optimize", *SMALL, "--thread-id", "half", "--max-calls", "12", "--display", "none")
COMMANDS = {"optimize": START, "runs": ("runs",), "show": ("show", "t"), "resume": ("resume", "t")}


@pytest.fixture
def paths(folder: Path) -> None:
    """Paths that are no checkpoint."""
    (folder / "a_folder").mkdir()
    (folder / "a_file").write_text("text")
    (folder / "notes.txt").write_text("no SQLite, " * 200)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["a_folder", "notes.txt", "a_file/under.sqlite"])
def test_a_path_that_cannot_be_a_checkpoint_is_told(command: str, path: str, drpo: Drpo, folder: Path) -> None:
    assert_one_line(drpo(*COMMANDS[command], "--checkpoint", path), 1, f"Checkpoint {path}", "--checkpoint")
    assert (folder / "notes.txt").read_text() == "no SQLite, " * 200
    assert not (folder / "t").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["pipe", "/dev/null", "/dev/zero"])
def test_a_pipe_or_a_device_is_no_checkpoint(command: str, path: str, drpo: Drpo, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert_one_line(drpo(*COMMANDS[command], "--checkpoint", path), 1, f"Checkpoint {path} is a device or a pipe")
    assert not Path(f"{path}.locks").exists()


@pytest.mark.parametrize(
    "option", [("--initial-prompt", "@/dev/zero"), ("--config", "/dev/zero"), ("--data-dir", "/dev/zero")]
)
def test_what_never_ends_is_not_read(option: tuple[str, str], drpo: Drpo) -> None:
    assert_one_line(drpo(*START, *option), 2, "/dev/zero", "it is a device")


def test_what_is_empty_or_comes_through_a_pipe_is_read(drpo: Drpo, folder: Path) -> None:
    os.mkfifo(folder / "settings.toml")
    writer = threading.Thread(target=(folder / "settings.toml").write_text, args=("depth = 1\n",), daemon=True)
    writer.start()
    assert drpo(*START, "--config", "settings.toml").code == 0
    assert drpo("optimize", *SMALL, "--display", "none", "--config", "/dev/null").code == 0


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Make files immutable, even for root, until the test ends."""
    made: list[Path] = []

    def freeze(path: Path) -> None:
        if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
            pytest.skip("files cannot be made immutable here")
        made.append(path)

    yield freeze
    for path in made:
        subprocess.run(["chattr", "-i", path], check=True)


def test_a_read_only_checkpoint_starts_nothing_and_can_be_read(
    drpo: Drpo, folder: Path, immutable: Callable[[Path], None]
) -> None:
    assert drpo(*START).code == 0
    immutable(folder / "drpo_runs" / "checkpoints.sqlite")
    refused = drpo("optimize", *SMALL, "--thread-id", "u", "--display", "none")
    assert_one_line(refused, 1, "drpo_runs/checkpoints.sqlite", "cannot be written", "--checkpoint")
    assert not (folder / "drpo_runs" / "u").exists()
    assert list_runs(drpo) == {"t": "done"}
    assert drpo("show", "t").code == 0


def test_a_folder_where_nothing_can_be_created_can_be_read(
    drpo: Drpo, folder: Path, immutable: Callable[[Path], None]
) -> None:
    assert drpo(*START).code == 0
    shutil.rmtree(folder / "drpo_runs" / "checkpoints.sqlite.locks")
    immutable(folder / "drpo_runs")
    assert list_runs(drpo) == {"t": "done"}
    assert drpo("show", "t").code == 0
    refused = drpo("optimize", *SMALL, "--thread-id", "u", "--display", "none")
    assert_one_line(refused, 1, "drpo_runs/checkpoints.sqlite", "cannot be written", "--checkpoint")


def test_finished_runs_are_shown_and_resumed_on_a_disk_that_cannot_be_written(
    drpo: Drpo, folder: Path, world: FakeServer, immutable: Callable[[Path], None]
) -> None:
    assert drpo(*START).code == 0
    assert drpo(*HALF).code == 3
    runs = folder / "drpo_runs"
    for path in (*runs.rglob("*"), runs):
        immutable(path)
    num_calls = len(finished_keys(world))
    shown = drpo("resume", "t", "--display", "jsonl")
    assert (shown.code, shown.err) == (0, "")
    assert [event.type for event in shown.events()] == ["run_finished"]
    assert list_runs(drpo) == {"t": "done", "half": "interrupted"}
    for command in (("show", "t"), ("show", "half"), ("events", "t"), ("export", "t", "--output", "out")):
        assert drpo(*command).code == 0, command
    assert_one_line(drpo("resume", "half", "--max-calls", "99"), 1, "cannot be written", "--checkpoint")
    for command in (("prune", "t", "--keep", "nothing", "--yes"), ("fork", "t", "--level", "1")):
        assert_one_line(drpo(*command), 1, "cannot be written", "--checkpoint")
    assert len(finished_keys(world)) == num_calls


def test_what_a_killed_run_left_in_its_log_is_read_on_a_disk_that_cannot_be_written(
    drpo: Drpo, folder: Path, immutable: Callable[[Path], None]
) -> None:
    assert drpo(*HALF).code == 3
    base = folder / "drpo_runs" / "checkpoints.sqlite"
    with closing(sqlite3.connect(base, isolation_level=None)) as reader:
        # While it reads, nothing leaves the log: as if the next run's process had been killed.
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM store").fetchone()
        assert drpo(*START).code == 0
        copied = {path: path.read_bytes() for path in (base, base.with_name(f"{base.name}-wal"))}
    for path, content in copied.items():
        path.write_bytes(content)
        immutable(path)
    immutable(base.parent)
    with closing(sqlite3.connect(f"file:{base}?immutable=1", uri=True)) as past_the_log:
        assert past_the_log.execute("SELECT key FROM store WHERE prefix = 'drpo.runs'").fetchall() == [("half",)]
    assert list_runs(drpo) == {"t": "done", "half": "interrupted"}
    assert drpo("resume", "t", "--display", "none").code == 0


@pytest.mark.usefixtures("paths")
def test_a_log_folder_that_cannot_be_made_starts_no_run(drpo: Drpo, folder: Path) -> None:
    refused = drpo(*START, "--log-dir", "a_file/logs")
    assert_one_line(refused, 1, "a_file/logs", "--log-dir", "--disable-log")
    assert list_runs(drpo) == {}
    assert drpo(*START, "--disable-log").code == 0
    assert not (folder / "drpo_runs" / "t").exists()


def test_a_run_without_log_goes_on_without_and_says_so(drpo: Drpo, folder: Path) -> None:
    assert drpo(*START, "--disable-log").code == 0
    assert_one_line(drpo("events", "t"), 1, "keeps no event log", "--disable-log")
    assert drpo("resume", "t", "--display", "none").code == 0
    assert not (folder / "drpo_runs" / "t").exists()
    assert drpo("show", "t").code == 0


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk of a given size, or give the mounted one another size."""
    disk = folder / "disk"
    disk.mkdir()

    def resize(size: str) -> Path:
        remount = "remount," if os.path.ismount(disk) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", str(disk)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
        return disk

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("size", ["320k", "448k", "576k"])
def test_a_full_disk_stops_the_run_and_with_more_room_it_ends_as_if_unbroken(
    size: str, drpo: Drpo, world: FakeServer, small_disk: Callable[[str], Path], unbroken: RunResult
) -> None:
    disk = small_disk(size)
    checkpoint = disk / "runs.sqlite"
    before = len(world.log)
    outcome = drpo(*START, "--checkpoint", checkpoint)
    assert_one_line(outcome, 1, str(disk), "full", "Free space", "drpo resume")
    small_disk("32m")
    assert drpo("resume", "t", "--checkpoint", checkpoint, "--display", "none").code == 0
    assert read_result(disk) == unbroken
    assert list_runs(drpo, "--checkpoint", checkpoint) == {"t": "done"}
    asked = [entry["key"] for entry in world.log[before:] if entry["event"] == "end"]
    # Only calls whose result could not be committed were made again.
    assert len(asked) <= len(set(asked)) + 32
    assert len(set(asked)) == sum(usage.calls for usage in unbroken.usage_by_role.values())


def test_results_that_cannot_be_written_are_kept_and_written_by_resume(
    drpo: Drpo, folder: Path, world: FakeServer, unbroken: RunResult
) -> None:
    (folder / "logs" / "algo_output").mkdir(parents=True)
    (folder / "logs" / "algo_output" / "output.json").mkdir()
    outcome = drpo(*START, "--log-dir", "logs")
    assert_one_line(outcome, 1, f"Run folder {folder / 'logs'}", "The result is stored", "drpo resume t")
    (folder / "logs" / "algo_output" / "output.json").rmdir()
    num_calls = len(finished_keys(world))
    assert drpo("resume", "t", "--display", "none").code == 0
    assert len(finished_keys(world)) == num_calls
    assert RunResult.model_validate_json((folder / "logs" / "result.json").read_bytes()) == unbroken
    assert (folder / "logs" / "algo_output" / "output.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [8_000, 60_000, 400_000])
def test_a_limit_on_file_sizes_stops_the_run_like_a_full_disk(
    limit: int, drpo: Drpo, folder: Path, unbroken: RunResult
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "drpo_graph", *START],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_one_line(finish(process), 1, "grow", "`ulimit -f`", "drpo resume")
    # One that stopped before it was a run is none, and is started again.
    is_run = drpo("show", "t").code == 0
    assert drpo(*(("resume", "t", "--display", "none") if is_run else START)).code == 0
    assert read_result(folder / "drpo_runs") == unbroken
