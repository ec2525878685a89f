"""Signals stop a process's runs, whoever listens to them."""

import asyncio
import logging
import os
import signal

import pytest

from drpo_graph.events.schema import Event, Warned
from drpo_graph.runs.signals import handle_signals
from tests.support.roles import answer, by_content, serve


async def test_a_sink_that_fails_does_not_keep_a_run_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, Warned):
            raise RuntimeError("the sink is full")

    async with serve(by_content({}, answer(4))) as (_, desk):
        desk.watchers.append(fail)
        with handle_signals(desk.context, enabled=True), caplog.at_level(logging.ERROR):
            os.kill(os.getpid(), signal.SIGINT)
            async with asyncio.timeout(60):
                while desk.ledger.stop.reason is None:
                    await asyncio.sleep(0.01)
    assert "the sink is full" in caplog.text
