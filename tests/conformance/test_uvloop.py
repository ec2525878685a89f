"""Runs on uvloop's event loop, which servers of Python apps bring."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from drpo_graph.settings.settings import Settings
from tests.conformance.graphs import CASES, found_in, make_settings, serve_models
from tests.conformance.test_surfaces import SURFACES, config_of, make

uvloop = pytest.importorskip("uvloop", reason="there is no uvloop for this system")

CHOSEN = ("ainvoke", "as_tool", "astream custom, subgraphs", "astream_events v2", "astream_events v3")
"""Surfaces that differ in how they wait."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:This API is in beta"),
    pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental"),
]


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with serve_models() as base_url:
        yield make_settings(base_url)


@pytest.mark.parametrize("name", ["search", "ICL", "parent"])
def test_surfaces_give_the_same_on_uvloop(name: str, settings: Settings) -> None:
    case = CASES[name]

    async def run_all() -> list[Any]:
        outputs = [await SURFACES[one](make(case, settings), case.given, config_of("t")) for one in CHOSEN]
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        return outputs

    with asyncio.Runner() as runner:
        found = found_in(runner.run(make(case, settings).ainvoke(case.given, config_of("t"))))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outputs = runner.run(run_all())
    assert [found_in(output) for output in outputs] == [found] * len(CHOSEN)
