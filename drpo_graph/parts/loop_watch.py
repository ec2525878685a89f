"""Tell of asynchronous code of the user's that blocks the event loop: nothing else can go on meanwhile, nor tell."""

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

_Said = TypeVar("_Said")

MAX_BLOCKED_S = 5.0
"""Whoever holds the loop for longer is told of, once."""


class _Step(NamedTuple):
    """What runs on a loop between two of its waits."""

    called: str
    began_at: float


class LoopWatch:
    """Looks from a thread of its own at how long each step of the watched code takes."""

    def __init__(self, *, max_blocked_s: float = MAX_BLOCKED_S, tell: Callable[[str], object] = logger.warning) -> None:
        self._max_blocked_s = max_blocked_s
        self.listeners: list[Callable[[str], object]] = [tell]
        """Told from the watching thread: a display on the loop is blocked, too."""
        self._steps_by_thread: dict[int, list[_Step]] = {}
        """The outermost first: what is awaited within it goes on in the same step."""
        self._told: set[str] = set()
        self._has_begun = threading.Event()
        self._looker: threading.Thread | None = None

    @coroutine
    def watch(self, work: Coroutine[Any, Any, _Said], called: str) -> Generator[Any, Any, _Said]:
        """Await work, and tell of it by the name that it is called by within a sentence."""
        steps = self._steps_by_thread.setdefault(threading.get_ident(), [])
        resume: Callable[[], Any] = lambda: work.send(None)  # noqa: E731
        while True:
            steps.append(_Step(called, time.monotonic()))
            self._wake()
            try:
                waited_for = resume()
            except StopIteration as end:
                said: _Said = end.value
                return said
            finally:
                steps.pop()
            try:
                sent = yield waited_for
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:  # noqa: BLE001  # Whatever the loop raises in it, a cancellation too.
                resume = _raise_in(work, error)
            else:
                resume = _send_to(work, sent)

    def _wake(self) -> None:
        if self._looker is None:
            self._looker = threading.Thread(target=self._look, name="drpo-loop-watch", daemon=True)
            self._looker.start()
        self._has_begun.set()

    def _look(self) -> None:
        while True:
            self._has_begun.wait()
            self._has_begun.clear()
            while self._tell_of_blockers():
                time.sleep(self._max_blocked_s / 5)
            # Steps are short: whoever begins the next one need not wake this thread each time.
            time.sleep(self._max_blocked_s / 5)

    def _tell_of_blockers(self) -> bool:
        """Return whether there is a step to be looked at again."""
        current = [steps[-1] for steps in list(self._steps_by_thread.values()) if steps]
        for step in current:
            blocked_s = time.monotonic() - step.began_at
            if blocked_s >= self._max_blocked_s and step.called not in self._told:
                self._told.add(step.called)
                message = (
                    f"{step.called} has blocked the event loop for {blocked_s:.0f} s: every other call waits, its "
                    "time-out cannot end it, and Ctrl-C is not heard. Write it without `async`, so that it runs in a "
                    "thread, or let it await what takes long."
                )
                for tell in tuple(self.listeners):
                    tell(message)
        return bool(current)


def _send_to(work: Coroutine[Any, Any, _Said], sent: Any) -> Callable[[], Any]:
    return lambda: work.send(sent)


def _raise_in(work: Coroutine[Any, Any, _Said], error: BaseException) -> Callable[[], Any]:
    return lambda: work.throw(error)


LOOP_WATCH = LoopWatch()
"""That of this process."""
