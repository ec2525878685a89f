"""Signals: the first Ctrl-C drains a process's runs, the second stops at once."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from drpo_graph.context import RunContext
from drpo_graph.events import Warned


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
        for session in context.open_sessions():
            message = f"stopping: {session.ledger.num_in_flight} calls finish first; Ctrl-C again stops at once"
            session.emitter.emit(Warned(run_id=session.run_id, message=message))
        context.stop.request("Stopped on request; finished calls are stored.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
