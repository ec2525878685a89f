"""A router in a file, as a chooser of prompts: opened when it is first needed, and again when the file was replaced."""

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from drpo_graph.errors import RewardModelError
from drpo_graph.parts.choosers import PromptChoice, PromptChooser

RouterOpener = Callable[[Path], PromptChooser]
"""Reads a router's file."""

_MAX_KNOWN_ROUTERS = 16


@runtime_checkable
class HasBestPrompt(Protocol):
    """A chooser that knows what to use where no query speaks for a choice."""

    @property
    def best_prompt(self) -> str:
        """The prompt that did best over all queries."""
        ...


class _KnownPrompt(Protocol):
    @property
    def text(self) -> str: ...


@runtime_checkable
class HasPrompts(Protocol):
    """A chooser that knows beforehand what it chooses from."""

    @property
    def prompts(self) -> Sequence[_KnownPrompt]:
        """The prompts."""
        ...


def load_router(path: Path, *, base_url: str | None = None) -> PromptChooser:
    """Return the router of a file.

    Args:
        path: The file.
        base_url: Where its embeddings are served, ending in ``/v1``; where that is usual, when absent.

    Raises:
        RewardModelError: the file is none.
        UsageError: what it needs is missing, or its embeddings were served elsewhere than usual.
    """
    from drpo_graph.oirl.router import PromptRouter  # Few who serve prompts have a router.

    router: PromptChooser = PromptRouter.load(path, base_url=base_url)
    return router


class RouterFile:
    """A chooser whose router stands in a file; each choice looks whether that was replaced, which costs one ``stat``.

    Args:
        path: The file.
        sha256: What the file must hold, in hexadecimal digits; without, one that is replaced is read anew.
        open_router: Reads it.
    """

    def __init__(self, path: Path, *, sha256: str | None = None, open_router: RouterOpener = load_router) -> None:
        self.path = path
        self.name = path.stem
        self._sha256 = sha256
        self._open_router = open_router
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, ...], PromptChooser] | None = None
        """What the file looked like when it was read, and what was in it."""

    def __repr__(self) -> str:
        return f"RouterFile({str(self.path)!r})"

    @property
    def best_prompt(self) -> str:
        """The router's best single prompt.

        Raises:
            RewardModelError: it has none, or as :meth:`open`.
        """
        router = self.open()
        if not isinstance(router, HasBestPrompt):
            raise self._error("it names no best single prompt. Give the file of a router of drpo_graph's")
        return router.best_prompt

    @property
    def prompt_texts(self) -> tuple[str, ...]:
        """The prompts that the router may choose, where it tells them.

        Raises:
            RewardModelError: as :meth:`open`.
        """
        router = self.open()
        return tuple(one.text for one in router.prompts) if isinstance(router, HasPrompts) else ()

    def open(self) -> PromptChooser:
        """Return the router, which is read where it was not, or not since the file was replaced.

        Raises:
            RewardModelError: there is no such file, it is no router's, or not what ``sha256`` says.
        """
        if (known := self._find_open()) is not None:
            return known
        with self._lock:
            if (known := self._find_open()) is not None:  # Another thread has read it meanwhile.
                return known
            before = self._look()
            if self._sha256 not in (None, digest_router(self.path)):
                raise self._error(
                    "the file has changed since it was put in use (its SHA-256 is another). Put it in use again, or "
                    "another prompt"
                )
            router = self._open_router(self.path)
            if self._look() != before:
                raise self._error("the file changes while it is read. Try again, and replace it in one step")
            self._seen = (before, router)
            return router

    async def achoose(self, query: str) -> PromptChoice:
        """Return the router's prompt for a query.

        Raises:
            RewardModelError: as :meth:`open`, or the router's own.
        """
        # Reading may take a second: what else runs on this loop goes on.
        router = self._find_open()
        if router is None:
            router = await asyncio.to_thread(self.open)
        return await router.achoose(query)

    def _find_open(self) -> PromptChooser | None:
        seen = self._seen  # One read: another thread may replace it.
        return seen[1] if seen is not None and seen[0] == self._look() else None

    def _look(self) -> tuple[int, ...]:
        try:
            return mark_of(self.path)
        except OSError as error:
            raise self._error(f"{error.strerror or error}. Give the file of a router that can be read") from error

    def _error(self, problem: str) -> RewardModelError:
        return RewardModelError(f"Router {self.path}: {problem}.")


class Routers:
    """Choosers by file, the same one for the same file: each is read once.

    Args:
        open_router: Reads a router's file.
    """

    def __init__(self, open_router: RouterOpener = load_router) -> None:
        self._open_router = open_router
        self._known: OrderedDict[tuple[str, str | None], RouterFile] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, path: Path, *, sha256: str | None = None) -> RouterFile:
        """Return the chooser of a file, which is not read yet.

        Args:
            path: The file.
            sha256: What it must hold, in hexadecimal digits.
        """
        place = os.path.abspath(path)
        with self._lock:
            made = RouterFile(Path(place), sha256=sha256, open_router=self._open_router)
            found = self._known.setdefault((place, sha256), made)
            self._known.move_to_end((place, sha256))
            while len(self._known) > _MAX_KNOWN_ROUTERS:
                self._known.popitem(last=False)
        return found


def digest_router(path: Path) -> str:
    """Return the SHA-256 of a router's file, in hexadecimal digits.

    Raises:
        RewardModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RewardModelError(
            f"Router {path}: {error.strerror or error}. Give the file of a router that can be read."
        ) from error


def mark_of(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced.

    Raises:
        OSError: there is none, or it cannot be looked at.
    """
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
