"""Every way to run a graph that LangGraph has, for each graph that a user runs: the same result, and no noise."""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from drpo_graph import parse_event
from drpo_graph.errors import UsageError
from drpo_graph.settings.settings import Settings
from tests.conformance.graphs import CASES, RECURSION, Case, found_in, make_settings, serve_models

Run = Callable[[Any, Any, Any], Awaitable[Any]]
"""Runs a graph with an input and a config, and returns its last values."""

STREAM_MODES = ("values", "updates", "custom", "messages", "tasks", "checkpoints", "debug")
LASTS = ("run_finished", "icl_finished")

pytestmark = [
    *(pytest.mark.filterwarnings(f"error::{kind}") for kind in ("UserWarning", "DeprecationWarning", "RuntimeWarning")),
    pytest.mark.filterwarnings("ignore:astream_events version='v1' is deprecated"),
    pytest.mark.filterwarnings("ignore:astream_log is deprecated"),
    pytest.mark.filterwarnings("ignore:This API is in beta"),
    pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental"),
]


async def _invoke(graph: Any, given: Any, config: Any, **how: Any) -> Any:
    output = await graph.ainvoke(given, config, **how)
    return output.value if how.get("version") == "v2" else output


async def _batch(graph: Any, given: Any, config: Any) -> Any:
    (output,) = await graph.abatch([given], [config])
    return output


async def _call_as_tool(graph: Any, given: Any, config: Any) -> Any:
    return await graph.as_tool(name="optimise", description="Optimises.").ainvoke(dict(given), config)


async def _stream(graph: Any, given: Any, config: Any, *, mode: str, has_subgraphs: bool) -> Any:
    last, kinds = None, []
    async for part in graph.astream(given, config, stream_mode=[mode, "values"], subgraphs=has_subgraphs):
        place, (kind, told) = (part[0], part[1:]) if has_subgraphs else ((), part)
        if kind == "values" and not place:
            last = told
        elif kind == "custom":
            kinds.append(parse_event(told).type)
    if mode == "custom" and has_subgraphs:
        assert kinds[-1] in LASTS
    return last


async def _stream_v2(graph: Any, given: Any, config: Any) -> Any:
    parts = [part async for part in graph.astream(given, config, stream_mode="values", version="v2")]
    return parts[-1]["data"]


async def _stream_events(graph: Any, given: Any, config: Any, *, version: str) -> Any:
    events = [event async for event in graph.astream_events(given, config, version=version)]
    output = events[-1]["data"]["output"]
    # Version 1 tells the updates by node.
    return output if "result" in output else list(output.values())[-1]


async def _stream_v3(graph: Any, given: Any, config: Any) -> Any:
    async with await graph.astream_events(given, config, version="v3") as stream:
        kinds = [event.type async for event in stream.extensions["drpo"]]
        assert kinds[0] in ("run_started", "icl_started")
        assert kinds[-1] in LASTS
        return await stream.output()


async def _stream_log(graph: Any, given: Any, config: Any) -> Any:
    state = None
    async for patch in graph.astream_log(given, config):
        state = patch if state is None else state + patch
    assert state is not None
    output = state.state["final_output"]
    return output if "result" in output else list(output.values())[-1]


SURFACES: Mapping[str, Run] = {
    "ainvoke": _invoke,
    "ainvoke, version 2": partial(_invoke, version="v2"),
    **{f"durability {kind}": partial(_invoke, durability=kind) for kind in ("sync", "async", "exit")},
    "abatch": _batch,
    "as_tool": _call_as_tool,
    **{
        f"astream {mode}{', subgraphs' if deep else ''}": partial(_stream, mode=mode, has_subgraphs=deep)
        for mode, deep in itertools.product(STREAM_MODES, (False, True))
    },
    "astream, version 2": _stream_v2,
    "astream_events v1": partial(_stream_events, version="v1"),
    "astream_events v2": partial(_stream_events, version="v2"),
    "astream_events v3": _stream_v3,
    "astream_log": _stream_log,
}


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with serve_models() as base_url:
        yield make_settings(base_url)


@pytest.fixture(scope="module")
def found(settings: Settings) -> dict[str, Any]:
    """What each case finds; filled as they are first run."""
    return {}


def make(case: Case, settings: Settings) -> Any:
    return case.build(settings, {"checkpointer": InMemorySaver(), "store": InMemoryStore()})


def config_of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}, **RECURSION}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("surface", SURFACES)
async def test_every_surface_gives_the_same(surface: str, name: str, settings: Settings, found: dict[str, Any]) -> None:
    case = CASES[name]
    if name not in found:
        found[name] = found_in(await make(case, settings).ainvoke(case.given, config_of("first")))
    output = await SURFACES[surface](make(case, settings), case.given, config_of("t"))
    assert found_in(output) == found[name]
    if not case.is_parent:
        # LangGraph's streams of values, and its events before version 3, show all channels of any graph.
        assert set(output) <= {"system_prompt", "result"} or (surface.startswith("astream") and surface[-2:] != "v3")


# A parent with a node that calls the graph has LangGraph's own words: the node is the user's.
@pytest.mark.parametrize("name", [name for name in CASES if name != "calling parent"])
@pytest.mark.parametrize("call", ["invoke", "stream", "batch"])
def test_what_cannot_work_says_what_to_call(call: str, name: str, settings: Settings) -> None:
    case = CASES[name]
    graph = make(case, settings)
    given = [case.given] if call == "batch" else case.given
    with pytest.raises(UsageError, match=r"is asynchronous.*a(invoke|stream)"):
        list(getattr(graph, call)(given, config_of("t")))


@pytest.mark.parametrize("name", CASES)
def test_schemas_are_told(name: str, settings: Settings) -> None:
    graph = make(CASES[name], settings)
    assert set(CASES[name].given) <= set(graph.get_input_jsonschema()["properties"])
    assert "result" in graph.get_output_jsonschema()["properties"]
