"""Files that hold prompts: their owner's alone, replaced in one step, never written through a link."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph.errors import CheckpointError
from drpo_graph.safety.private_files import create_private_file, make_private_folder, open_to_append, write_atomically
from drpo_graph.storage.sqlite_file import is_worked_on, lock_thread, open_checkpoint
from tests.support.command import ROOT


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    former = os.umask(0)
    yield
    os.umask(former)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_and_the_folders_made_for_them_are_their_owner_s_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write_atomically(tmp_path / "a" / "b" / "file", b"x")
    os.close(open_to_append(tmp_path / "c" / "log"))
    create_private_file(make_private_folder(tmp_path / "d") / "base")
    assert {mode_of(path) for path in tmp_path.rglob("*") if path.is_file()} == {0o600}
    assert {mode_of(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
    assert mode_of(tmp_path) == 0o755


def test_what_is_there_keeps_its_mode_and_its_content(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    (shared / "base").write_bytes(b"old")
    (shared / "base").chmod(0o640)
    make_private_folder(shared)
    create_private_file(shared / "base")
    os.close(open_to_append(shared / "base"))
    assert (mode_of(shared), mode_of(shared / "base"), (shared / "base").read_bytes()) == (0o777, 0o640, b"old")


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "run" / "result.json", b"new")
    assert (tmp_path / "precious").read_bytes() == b"keep"
    assert not (tmp_path / "run" / "result.json").is_symlink()
    assert (tmp_path / "run" / "result.json").read_bytes() == b"new"


@pytest.mark.parametrize("target", ["precious", "missing"])
def test_a_link_is_not_appended_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match=r"events\.jsonl is a link"):
        open_to_append(tmp_path / "run" / "events.jsonl")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["precious", "run"]
    assert (tmp_path / "precious").read_bytes() == b"keep"


def test_a_folder_below_the_root_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "algo_output").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="algo_output is a link"):
        write_atomically(tmp_path / "run" / "algo_output" / "tree.json", b"x", root=tmp_path / "run")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_root_that_is_the_user_s_own_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big_disk")
    write_atomically(tmp_path / "run" / "file", b"x", root=tmp_path / "run")
    assert (tmp_path / "big_disk" / "file").read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a link to another user")
def test_a_folder_that_is_another_user_s_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "victim")
    os.chown(tmp_path / "run", 12345, 12345, follow_symlinks=False)
    for write in (
        lambda: write_atomically(tmp_path / "run" / "f", b"x"),
        lambda: open_to_append(tmp_path / "run" / "f"),
    ):
        with pytest.raises(OSError, match="another user's link"):
            write()
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a link to another user")
@pytest.mark.parametrize("target", ["victim.sqlite", "missing.sqlite"])
async def test_a_checkpoint_that_is_another_user_s_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim.sqlite").touch()
    base = tmp_path / "runs.sqlite"
    base.symlink_to(tmp_path / target)
    os.chown(base, 12345, 12345, follow_symlinks=False)
    with pytest.raises(CheckpointError, match="another user's link"):
        async with open_checkpoint(base):
            pass
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.sqlite", "victim.sqlite"]
    assert (tmp_path / "victim.sqlite").stat().st_size == 0


async def test_a_checkpoint_that_is_the_user_s_own_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "runs.sqlite").symlink_to(tmp_path / "big_disk.sqlite")
    async with open_checkpoint(tmp_path / "runs.sqlite"):
        pass
    assert (tmp_path / "big_disk.sqlite").stat().st_size > 0


def test_a_link_in_the_place_of_a_lock_is_refused_and_its_target_left(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "runs.sqlite.locks").mkdir()
    (tmp_path / "runs.sqlite.locks" / "t.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"t\.lock"), lock_thread(tmp_path / "runs.sqlite", "t"):
        pass
    assert not is_worked_on(tmp_path / "runs.sqlite", "t")
    assert (tmp_path / "precious").read_bytes() == b"keep"


def test_a_pipe_in_the_place_of_a_log_is_refused_and_does_not_hold_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(OSError, match="it is no file"):
        open_to_append(tmp_path / "events.jsonl")


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    code = (
        "import resource, sys; from pathlib import Path; from drpo_graph.safety.private_files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically(Path(sys.argv[1]), b'n' * 5000)\n"
        "except OSError as error:\n    print(error.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) == errno.EFBIG
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_on_the_way_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_file_and_folder_are_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        own = getattr(os, name)

        def note(*given: object, _name: str = name, _own: object = own, **named: object) -> None:
            is_folder = _name == "fsync" and os.path.isdir(f"/proc/self/fd/{given[0]}")
            calls.append("fsync folder" if is_folder else _name)
            _own(*given, **named)  # type: ignore[operator]

        monkeypatch.setattr(os, name, note)
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync folder"]


def test_a_reader_beside_a_killed_writer_sees_whole_files_only(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from drpo_graph.safety.private_files import write_atomically\n"
        "path, number = Path(sys.argv[1]), 0\n"
        "while True:\n    number += 1\n    write_atomically(path, str(number % 10).encode() * 200_000)"
    )
    path = tmp_path / "file"
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
        deadline = time.monotonic() + 30
        num_seen = 0
        while num_seen < 20 and time.monotonic() < deadline:
            content = path.read_bytes() if path.exists() else b""
            num_seen += bool(content)
            assert content == b"" or content == content[:1] * 200_000
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_bytes() == path.read_bytes()[:1] * 200_000
