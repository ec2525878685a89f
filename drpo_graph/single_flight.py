"""Do work once for all who ask for it at the same time."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


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
        if not done.cancelled():
            done.exception()  # Marks it as seen: those who waited, if any are left, got it too.
