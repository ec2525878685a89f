"""Signals: the first Ctrl-C, SIGTERM or SIGHUP drains a process's runs, the second stops at once."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from drpo_graph.search.session import RunContext

logger = logging.getLogger(__name__)


@contextmanager
def handle_signals(context: RunContext, *, enabled: bool) -> Iterator[None]:
    """Turn the first Ctrl-C into a drain and the second into a stop at once."""
    if not enabled:
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if context.stop.reason is not None:
            task.cancel()
            return
        # First of all: a sink that fails must not keep the run from stopping.
        context.stop.request("Stopped on request; finished calls are stored.")
        for session in context.open_sessions():
            message = f"stopping: {session.ledger.num_in_flight} calls finish first; Ctrl-C again stops at once"
            try:
                session.warn(message)
            except Exception:  # A caller's sink may raise anything.
                logger.exception("A sink failed.")

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal; under nohup it is to be ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
