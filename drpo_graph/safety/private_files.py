"""Files that hold prompts: readable by their owner alone, replaced in one step, never written through a link.

A folder that we make is closed to others; one that exists is left as its owner made it. Below a run's folder no link is
followed, so that whoever can write there cannot have another file of the user's overwritten.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_SUPERUSER = 0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make_private_folder(folder: Path) -> Path:
    """Return the folder, made with its parents where they are missing; those made are closed to other users.

    Raises:
        OSError: it cannot be made, something else stands in its place, or another user's link.
    """
    _refuse_foreign_link(folder)
    missing = []
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        missing.append(place)
    for place in reversed(missing):
        # Another process may make it meanwhile; what is no folder is told by the next step or the caller's.
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
    return folder


def create_private_file(path: Path) -> None:
    """Make an empty file that its owner alone can read, unless there is a file already.

    Raises:
        OSError: it cannot be made, or another user's link stands in its place.
    """
    _refuse_foreign_link(path)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))


def open_to_append(path: Path) -> int:
    """Return the descriptor of a file to be appended to, made for its owner alone where it is missing.

    Raises:
        OSError: it is a link or no file, or it cannot be written.
    """
    make_private_folder(path.parent)
    # Without O_NONBLOCK, a pipe in the file's place would hold the run up for good.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except OSError as error:
        raise _explain_link(error, path) from error
    mode = os.fstat(descriptor).st_mode
    # Only the superuser makes devices, such as the one that takes everything.
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


def open_to_read(path: Path) -> int:
    """Return the descriptor of a file to be read.

    Raises:
        OSError: it is a link or no file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _explain_link(error, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


def write_atomically(path: Path, content: bytes | Iterable[bytes], *, root: Path | None = None) -> None:
    """Replace a file in one step, so that a reader or a crash sees the old one or the new one.

    Once this returns, the new one is on the disk under its name, whatever happens to the machine.

    Args:
        path: The file; a link in its place is replaced, not followed.
        content: What it will hold, in one piece or in several.
        root: The folder below which no link is followed on the way to the file; its own folder when absent.

    Raises:
        OSError: it cannot be written, or a folder on the way is a link.
    """
    with _open_folder(path.parent, root or path.parent) as folder:
        unfinished = f".{path.name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(unfinished, flags, FILE_MODE, dir_fd=folder), "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(unfinished, dir_fd=folder)
            raise
        os.fsync(folder)


@contextmanager
def _open_folder(folder: Path, root: Path) -> Iterator[int]:
    """Give the descriptor of a folder, made where it is missing, that is reached from the root without a link."""
    descriptor = os.open(make_private_folder(root), _OPEN_FOLDER)
    try:
        for part in folder.relative_to(root).parts:
            with suppress(FileExistsError):
                os.mkdir(part, FOLDER_MODE, dir_fd=descriptor)
            try:
                inner = os.open(part, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                raise _explain_link(error, root / part) from error
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_foreign_link(path: Path) -> None:
    if path.is_symlink() and path.lstat().st_uid not in (os.geteuid(), _SUPERUSER):
        raise OSError(errno.ELOOP, f"{path.name} is another user's link", str(path))


def _explain_link(error: OSError, path: Path) -> OSError:
    is_link = error.errno in (errno.ELOOP, errno.EMLINK) or (error.errno == errno.ENOTDIR and path.is_symlink())
    if not is_link:
        return error
    return OSError(errno.ELOOP, f"{path.name} is a link, which is not written through", str(path))
