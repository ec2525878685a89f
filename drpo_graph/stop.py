"""Work under way: how it is asked to stop, and shared by all who ask for the same."""

import asyncio
import weakref
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Generic, TypeVar

from drpo_graph.errors import RunInterruptedError

T = TypeVar("T")

K = TypeVar("K")


class StopSignal:
    """Asks a process's runs to stop: calls in flight go on, no further one begins. Bound to one event loop."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._cause: Exception | None = None
        self._requested = asyncio.Event()
        self._children: weakref.WeakSet[StopSignal] = weakref.WeakSet()
        self._guards: list[Callable[[], object]] = []

    def child(self) -> "StopSignal":
        """Return a signal that is requested with this one, and can be requested alone."""
        child = StopSignal()
        child._guards = self._guards
        self._children.add(child)
        if self._reason is not None:
            child.request(self._reason, self._cause)
        return child

    def add_guard(self, look: Callable[[], object]) -> None:
        """Have something looked at before each call, here and in every child: it requests a stop where one is due."""
        self._guards.append(look)

    def request(self, reason: str, cause: Exception | None = None) -> None:
        """Let no further call begin; the first reason given stays, with the error that it stands for, if any."""
        if self._reason is None:
            self._reason, self._cause = reason, cause
        self._requested.set()
        for child in self._children:
            child.request(reason, cause)

    @property
    def reason(self) -> str | None:
        """Why calls may no longer begin; ``None`` while they may."""
        return self._reason

    @property
    def cause(self) -> Exception | None:
        """The error that the reason stands for; ``None`` where there is none."""
        return self._cause

    def check(self) -> None:
        """Do nothing while calls may begin.

        Raises:
            RunInterruptedError: a stop was requested; from the error that it was requested for, if any.
        """
        for look in self._guards:
            look()
        if self._reason is not None:
            raise RunInterruptedError(self._reason) from self._cause

    async def guard(self, waiting: Coroutine[object, object, object]) -> None:
        """Await something that only time ends, but no longer than until a stop is requested.

        Raises:
            RunInterruptedError: a stop was requested.
        """
        task = asyncio.ensure_future(waiting)
        stopped = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            task.cancel()
        self.check()
        task.result()


async def await_unless_stopped(stop: StopSignal, work: Coroutine[object, object, T]) -> T:
    """Return what the work comes to; where a stop is requested, end it first.

    Raises:
        RunInterruptedError: a stop was requested.
    """
    task = asyncio.ensure_future(work)
    try:
        await stop.guard(asyncio.wait([task]))
    except RunInterruptedError:
        if not task.done():
            raise
    finally:
        task.cancel()
        # What it holds is given back before anyone goes on.
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # Marks it as seen, where the stop goes before it.
    return task.result()


async def finish(work: Coroutine[object, object, T]) -> T:
    """Return what the work comes to, and not before it is done, though whoever waits for it be cancelled meanwhile.

    Graphs in graphs cancel a node more than once.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        note_seen(task)
        raise cancelled
    return task.result()


def note_seen(done: "asyncio.Task[T]") -> None:
    """Mark a finished task's error as seen: those who waited for it got it too, and if nobody is left, nobody asks."""
    if not done.cancelled():
        done.exception()


class SingleFlight(Generic[K, T]):
    """Work under way, by key: whoever asks for it meanwhile gets the same result, or the same error.

    It goes on when those who wait for it are cancelled. Once it has ended it is forgotten, and done anew for those who
    ask then. Bound to one event loop.
    """

    def __init__(self) -> None:
        self.tasks: dict[K, asyncio.Task[T]] = {}
        """What is under way."""

    async def share(self, key: K, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """Return what the work under way for a key comes to; it is begun where there is none."""
        task = self.tasks.get(key)
        if task is None:
            task = self.begin([key], work())
        return await asyncio.shield(task)

    def begin(self, keys: Collection[K], work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Return a task that does the work for several keys at once; shield it when awaiting it."""
        task = asyncio.create_task(work)
        self.tasks.update(dict.fromkeys(keys, task))
        task.add_done_callback(partial(self._forget, keys))
        return task

    def _forget(self, keys: Collection[K], done: asyncio.Task[T]) -> None:
        for key in keys:
            del self.tasks[key]
        note_seen(done)
