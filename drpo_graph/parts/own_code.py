"""Code of the user's own: called so that it holds up nothing else, its failures told as what they are.

What is asynchronous runs on the event loop, as ours does. What is not runs in a thread of its own: it may compute or
wait for as long as it likes, and when its time is up, its answer is no longer waited for. Nothing ends a thread from
outside. So there are at most so many, none keeps the process from ending, and a run of which too many do not end stops.
"""

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from drpo_graph.errors import DRPOError, FailureKind, ReplyError, RewardError
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.parts.loading import is_async
from drpo_graph.parts.loop_watch import LOOP_WATCH
from drpo_graph.records import Query
from drpo_graph.safety.texts import clean_surrogates

logger = logging.getLogger(__name__)

_Said = TypeVar("_Said")

MAX_THREADS = 16
"""Calls at once, of one event loop."""
OWN_TIMEOUT_S = 180.0
"""Longest wait for what is not asynchronous, where nothing else is set."""
_MAX_TOLD = 2_000
"""Characters of an error's text that are told and stored: some hold all that could not be read."""
MAX_LOST = 8
"""Threads of a process that may run on beyond their time."""

_places = PerLoop(lambda: asyncio.Semaphore(MAX_THREADS))
_lost: set[threading.Thread] = set()


async def call_own(
    function: Callable[..., Awaitable[_Said] | _Said],
    *given: Any,
    called: str,
    timeout_s: float = OWN_TIMEOUT_S,
    is_bounded: bool = True,
    kind: FailureKind = "unavailable",
    **named: Any,
) -> _Said:
    """Return what a function, or a method, of the user's returns, be it asynchronous or not.

    Args:
        function: What is called, with what follows.
        given: Its arguments.
        called: Names it within a sentence.
        timeout_s: Longest wait for it.
        is_bounded: Whether that holds for asynchronous code too, which may ask the run's models and wait for them.
        kind: That of the error where the wait is over.
        named: Further arguments.

    Raises:
        ReplyError: it said nothing in time.
        RewardError: too many calls go on beyond their time.
        Exception: what it raises.
    """
    call = partial(function, *given, **named)
    limit = asyncio.timeout(timeout_s if is_bounded and is_async(function) else None)
    try:
        async with limit:
            said = call() if is_async(function) else await _call_in_thread(call, called=called, timeout_s=timeout_s)
            if inspect.iscoroutine(said):
                said = await LOOP_WATCH.watch(said, called)
            return cast(_Said, await said if inspect.isawaitable(said) else said)
    except (SystemExit, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise
        # Its own doing: it would end the process, or pass for a call that nobody wants any more.
        raise RuntimeError(tell_error(error)) from error
    except _OverdueError as error:
        cause: Exception = error
    except TimeoutError as error:
        if not limit.expired():
            raise
        cause = error
    raise ReplyError(f"{called}: no answer within {timeout_s:g} s", kind=kind) from cause


def tell_error(error: BaseException) -> str:
    """Return an error's kind and its text, where it has one that can be had; so much of it as somebody may read."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # The error is the user's, and so is what tells of it.
        return f"{type(error).__name__}, whose text cannot be had"
    cut = f"{text[:_MAX_TOLD]} [...]" if len(text) > _MAX_TOLD else text
    return f"{type(error).__name__}: {cut}"


class _OverdueError(Exception):
    """A thread is no longer waited for."""


async def _call_in_thread(call: Callable[[], Any], *, called: str, timeout_s: float) -> Any:
    async with _places.get():
        _check_lost()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(said: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(said)
            else:
                done.set_exception(error)

        def work() -> None:
            said, error = None, None
            try:
                said = context.run(call)
            except BaseException as raised:  # noqa: BLE001  # Whoever awaits it has to hear of it.
                # A StopIteration cannot be raised in the loop, and a sys.exit() would end it.
                is_usual = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
                error = raised if is_usual else RuntimeError(tell_error(raised))
            with suppress(RuntimeError):  # The loop is closed: nobody waits.
                loop.call_soon_threadsafe(settle, said, error)

        # A daemon: no thread of an executor's, which the process waits for when it ends.
        thread = threading.Thread(target=work, name=f"drpo: {called}", daemon=True)
        thread.start()
        try:
            finished, _ = await asyncio.wait([done], timeout=timeout_s)
        finally:
            if not done.done():
                _lost.add(thread)
        if not finished:
            done.cancel()
            logger.warning("%s runs on after %g s, in a thread that nobody waits for any more", called, timeout_s)
            raise _OverdueError
        return done.result()


def _check_lost() -> None:
    _lost.difference_update([one for one in _lost if not one.is_alive()])
    if len(_lost) >= MAX_LOST:
        names = ", ".join(sorted({one.name.removeprefix("drpo: ") for one in _lost}))
        raise RewardError(
            f"{len(_lost)} calls of your own code go on beyond their time, and nothing can end them: {names}. Let it "
            "end in time by itself, or give it more, then resume."
        )


async def ask_judge(
    judge: Callable[..., Awaitable[_Said] | _Said],
    *given: Any,
    called: str,
    query: Query,
    timeout_s: float,
    expects: tuple[type[Exception], ...],
    expects_setting: str,
) -> _Said:
    """Return what a judge says.

    Args:
        judge: Called with what follows.
        given: Its arguments.
        called: Names it within a sentence.
        query: What is judged an answer to.
        timeout_s: Longest wait.
        expects: What it may raise besides ``ReplyError`` where it cannot judge.
        expects_setting: Says where that is set.

    Raises:
        ReplyError: it said nothing in time, or raised this or what it may raise.
        RewardError: it raised anything else.
    """
    try:
        return await call_own(judge, *given, called=called, timeout_s=timeout_s, kind="reward_error")
    except DRPOError:
        raise
    except Exception as error:
        told = clean_surrogates(tell_error(error))
        if isinstance(error, expects):
            raise ReplyError(f"{called}: {told}", kind="reward_error") from error
        raise RewardError(
            f"{called[0].upper()}{called[1:]} failed on query {query.id!r}: {told}. Mend it, let it raise ReplyError, "
            f"or say what it may raise ({expects_setting}), then resume."
        ) from error
