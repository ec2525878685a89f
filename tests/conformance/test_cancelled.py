"""A run that is cancelled goes on as if nothing had happened.

What was finished is never asked for again. What is under way when a task is cancelled is finished and kept, as long as
the event loop is; a loop that ends at once takes it along, and it is asked for once more.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from drpo_graph.settings.settings import Settings
from tests.conformance.conftest import Build, Failing
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.conformance.places import Place
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}
PAIR = "memory, no store"


async def _count_committed(place: Place) -> int:
    """Return how many calls stand in the checkpointer."""
    async with place.open() as how:
        found = [one async for one in how["checkpointer"].alist({"configurable": {"thread_id": "t"}})]
    places = [place for one in found for _, place, _ in one.pending_writes or () if place.startswith('["drpo"')]
    return sum(json.loads(place)[-2] == "calls" for place in places)


async def _cancel_at(graph: Any, given: Any, models: Failing, num_left: int) -> None:
    """Begin, and cancel as so many calls are answered and one more is under way."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(graph.ainvoke(given, CONFIG))
    models.num_left, models.tell = num_left, lambda: loop.call_soon_threadsafe(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("is_rebuilt", "pair"),
    [
        pytest.param(False, "SQLite, SQLite store", id="the same graph, SQLite store"),
        pytest.param(True, "SQLite, no store", id="another graph, no store"),
        pytest.param(True, "SQLite, SQLite store", id="another graph, SQLite store"),
    ],
)
async def test_a_cancelled_run_goes_on_without_repeating_a_call(
    is_rebuilt: bool,
    pair: str,
    name: str,
    server: FakeServer,
    models: Failing,
    built: Build,
    make_place: Callable[[str], Place],
) -> None:
    settings, given = make_settings(server.base_url), CASES[name].given
    async with built(name, settings, make_place(pair)) as graph:
        unbroken = found_in(await graph.ainvoke(given, CONFIG))
    num_calls = len(finished_keys(server))
    for num_left in (2, num_calls // 2):
        before, place = len(finished_keys(server)), make_place(pair)
        async with built(name, settings, place) as graph:
            await _cancel_at(graph, given, models, num_left)
            if not is_rebuilt:
                assert found_in(await graph.ainvoke(None, CONFIG)) == unbroken
        if is_rebuilt:
            async with built(name, settings, place) as graph:
                assert found_in(await graph.ainvoke(None, CONFIG)) == unbroken
        keys = finished_keys(server)[before:]
        assert len(keys) == len(set(keys)) == num_calls


@pytest.mark.parametrize("name", CASES)
def test_a_loop_that_ends_at_once_repeats_only_what_was_under_way(
    name: str, server: FakeServer, models: Failing, make_place: Callable[[str], Place]
) -> None:
    settings, given = make_settings(server.base_url), CASES[name].given

    async def go_on(given: Any, place: Place, settings: Settings) -> Any:
        async with place.open() as how:
            return found_in(await CASES[name].build(settings, how).ainvoke(given, CONFIG))

    async def cancel(place: Place, num_left: int) -> None:
        async with place.open() as how:
            await _cancel_at(CASES[name].build(settings, how), given, models, num_left)

    unbroken = asyncio.run(go_on(given, make_place(PAIR), settings))
    num_calls = len(finished_keys(server))
    for num_left in (2, num_calls // 2):
        before, place = len(server.log), make_place(PAIR)
        asyncio.run(cancel(place, num_left))
        num_committed = asyncio.run(_count_committed(place))
        assert asyncio.run(go_on(None, place, settings)) == unbroken
        asked = Counter(one["key"] for one in server.log[before:] if one["event"] == "start")
        assert len(asked) == num_calls
        assert max(asked.values()) <= 2
        assert asked.total() <= 2 * num_calls - num_committed
