"""A graph is broken off anywhere, built anew from what its user keeps, and goes on where it was."""

from collections.abc import Callable
from typing import Any

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.events.schema import ICLStarted, LevelStarted, RunStarted, parse_event
from tests.conformance.conftest import Build, Failing
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.conformance.places import MARKED_PAIRS, Place
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pair", MARKED_PAIRS)
async def test_a_graph_goes_on_wherever_it_was_broken_off(
    pair: str, name: str, server: FakeServer, models: Failing, built: Build, make_place: Callable[[str], Place]
) -> None:
    # Everywhere with what keeps least; with the others in the middle.
    is_least = pair == "SQLite, no store"
    settings, given = make_settings(server.base_url, depth=3), CASES[name].given
    async with built(name, settings, make_place(pair)) as graph:
        unbroken = found_in(await graph.ainvoke(given, CONFIG))
    num_calls = len(finished_keys(server))
    assert num_calls > 10
    for num_left in range(1, num_calls, 2) if is_least else (num_calls // 2,):
        before, place = len(finished_keys(server)), make_place(pair)
        models.num_left = num_left
        async with built(name, settings, place) as graph:
            with pytest.raises(ModelCallError):
                await graph.ainvoke(given, CONFIG)
        models.num_left = float("inf")
        async with built(name, settings, place) as graph:
            assert found_in(await graph.ainvoke(None, CONFIG)) == unbroken
        keys = finished_keys(server)[before:]
        assert len(keys) == len(set(keys)) == num_calls


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_left", [2, 6])
async def test_a_graph_tells_once_that_it_goes_on(
    name: str, num_left: int, server: FakeServer, models: Failing, built: Build, make_place: Callable[[str], Place]
) -> None:
    settings, given, place = make_settings(server.base_url, depth=3), CASES[name].given, make_place("SQLite, no store")
    models.num_left = num_left
    async with built(name, settings, place) as graph:
        with pytest.raises(ModelCallError):
            await graph.ainvoke(given, CONFIG)
    models.num_left = float("inf")
    events = []
    async with built(name, settings, place) as graph:
        async for _, told in graph.astream(None, CONFIG, stream_mode="custom", subgraphs=True):
            events.append(parse_event(told))
    started = [number for number, one in enumerate(events) if isinstance(one, RunStarted | ICLStarted)]
    assert started == [0]
    first = events[0]
    assert isinstance(first, RunStarted | ICLStarted)
    assert first.is_resumed
    if isinstance(first, RunStarted):
        assert isinstance(events[1], LevelStarted)
