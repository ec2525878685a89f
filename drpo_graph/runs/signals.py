"""Signals: the first Ctrl-C, SIGTERM or SIGHUP drains a process's runs, the second stops at once."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from drpo_graph.search.session import RunSession
from drpo_graph.stop import StopSignal

logger = logging.getLogger(__name__)


REQUESTED = "Stopped on request; finished calls are stored."


class Stoppable(Protocol):
    """What can be asked to stop."""

    @property
    def stop(self) -> StopSignal:
        """Stops what is under way."""

    def open_sessions(self) -> list[RunSession]:
        """Return the sessions of the runs that are under way."""


@contextmanager
def handle_signals(context: Stoppable, *, enabled: bool, cancels_idle: bool = False) -> Iterator[None]:
    """Turn the first Ctrl-C into a drain and the second into a stop at once.

    Args:
        context: What is stopped.
        enabled: Whether anything is done.
        cancels_idle: Whether the first one cancels the task where no run is under way that would end it.
    """
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
        context.stop.request(REQUESTED)
        if cancels_idle and not context.open_sessions():
            task.cancel()
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
