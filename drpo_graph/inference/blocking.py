"""Wait for asynchronous work where no event loop runs, or where the running one is the caller's."""

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import TypeVar

from drpo_graph.errors import UsageError

T = TypeVar("T")

_END_WAIT_S = 5.0


class _Loop:
    """An event loop on a thread of its own: one for all, so that connections and limits are shared."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._end_asked = asyncio.Event()
        self.thread = threading.Thread(target=self._live, name="drpo-aligned", daemon=True)
        self.thread.start()
        atexit.register(self._end)

    def _live(self) -> None:
        # Its end closes the HTTP clients that were opened on it.
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._end_asked.wait())

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self._end_asked.set)
        self.thread.join(_END_WAIT_S)


_lock = threading.Lock()
_loops: list[_Loop] = []


def wait_for(work: Coroutine[object, object, T]) -> T:
    """Return what the work comes to; the calling thread does nothing else meanwhile.

    Raises:
        UsageError: the calling thread is the one that would do the work.
    """
    chosen = _running_loop()
    if threading.current_thread() is chosen.thread:
        work.close()
        raise UsageError("A synchronous call inside of one would wait for itself: use the asynchronous method.")
    future = asyncio.run_coroutine_threadsafe(work, chosen.loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(values: AsyncIterator[T]) -> Iterator[T]:
    """Yield the values as they come; they end with the iterator that is left early, too."""
    try:
        while True:
            try:
                yield wait_for(_next(values))
            except StopAsyncIteration:
                return
    finally:
        close = getattr(values, "aclose", None)
        if close is not None:
            with suppress(RuntimeError):  # It was never begun on this loop.
                wait_for(close())


async def _next(values: AsyncIterator[T]) -> T:
    return await anext(values)


def _running_loop() -> _Loop:
    with _lock:
        if not _loops:
            _loops.append(_Loop())
        return _loops[0]


# A forked process has the loop, but not its thread.
os.register_at_fork(after_in_child=_loops.clear)
