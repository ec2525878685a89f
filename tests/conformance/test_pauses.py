"""A search that waits for a decision about each level goes on with ``Command(resume=...)``, on every surface."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from langgraph.types import Command

from tests.conformance.conftest import Build
from tests.conformance.graphs import CASES, RECURSION, found_in, make_settings
from tests.conformance.places import MARKED_PAIRS, Place
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

CONFIG: Any = {"configurable": {"thread_id": "t"}, **RECURSION}
APPROVE = {"author": "Ada"}
NAMES = [name for name in CASES if name != "ICL"]
OTHER_PAIRS = [one for one in MARKED_PAIRS if one.values != ("SQLite, no store",)]

pytestmark = pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental")

Step = Callable[[Any, Any], Awaitable[tuple[Any, list[Any]]]]
"""Runs a graph with an input to its next pause or its end; returns the values and what it asks."""


async def _invoke(graph: Any, given: Any) -> tuple[Any, list[Any]]:
    output = await graph.ainvoke(given, CONFIG)
    return output, [one.value for one in output.get("__interrupt__", ())]


async def _invoke_v2(graph: Any, given: Any) -> tuple[Any, list[Any]]:
    output = await graph.ainvoke(given, CONFIG, version="v2")
    return output.value, [one.value for one in output.interrupts]


async def _stream(graph: Any, given: Any) -> tuple[Any, list[Any]]:
    values, asked = None, []
    async for mode, told in graph.astream(given, CONFIG, stream_mode=["values", "updates"]):
        if mode == "values":
            values = told
        elif "__interrupt__" in told:
            asked = [one.value for one in told["__interrupt__"]]
    return values, asked


async def _stream_v3(graph: Any, given: Any) -> tuple[Any, list[Any]]:
    async with await graph.astream_events(given, CONFIG, version="v3") as stream:
        output = await stream.output()
        return output, [one.value for one in await stream.interrupts()]


STEPS: Mapping[str, Step] = {
    "ainvoke": _invoke,
    "ainvoke, version 2": _invoke_v2,
    "astream": _stream,
    "astream_events v3": _stream_v3,
}


@pytest.mark.parametrize(
    ("step", "pair", "name"),
    [
        *(
            pytest.param(step, "SQLite, no store", name, id=f"{step}, SQLite, no store-{name}")
            for step in STEPS
            for name in NAMES
        ),
        *(
            pytest.param("ainvoke", *one.values, name, marks=one.marks, id=f"ainvoke, {one.values[0]}-{name}")
            for one in OTHER_PAIRS
            for name in ("search", "parent")
        ),
    ],
)
async def test_each_level_is_decided_about(
    step: str, pair: str, name: str, server: FakeServer, built: Build, make_place: Callable[[str], Place]
) -> None:
    given, place = CASES[name].given, make_place(pair)
    async with built(name, make_settings(server.base_url, depth=3), make_place(pair)) as graph:
        unreviewed = found_in(await graph.ainvoke(given, CONFIG))
    num_calls, levels = len(finished_keys(server)), []
    settings = make_settings(server.base_url, depth=3, approve=True)
    while True:
        # Each decision comes to another process.
        async with built(name, settings, place) as graph:
            output, asked = await STEPS[step](graph, Command(resume=APPROVE) if levels else given)
        if not asked:
            break
        (question,) = asked
        levels.append(question["level"])
    assert levels == [1, 2]
    assert found_in(output) == unreviewed
    keys = finished_keys(server)[num_calls:]
    assert len(keys) == len(set(keys)) == num_calls
