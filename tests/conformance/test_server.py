"""The graphs under ``langgraph dev``, by LangGraph's client, by ``RemoteGraph``, and by plain HTTP."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph_sdk import get_client

from drpo_graph.events.schema import ICLFinished, RunFinished, parse_event
from drpo_graph.settings.caller_settings import CALLER_SETTINGS
from tests.conformance.graphs import CASES, RECURSION, ParentInput, ParentState, found_in, make_settings, serve_models
from tests.support.langgraph_server import COMMAND, run_langgraph_dev
from tests.support.world import INITIAL_PROMPT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="the extra `server` (langgraph-cli[inmem]) is not installed"),
    pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental"),
]

NAMES = {"drpo": "search", "icl": "ICL"}
"""The case of each graph that is served."""
SETTINGS = f"""
model = "openai:world"
base_url = "BASE_URL"
probe = false
depth = 2
beam_size = 1
n_actions = 2
queries_per_level = 1
max_calls = 500
initial_prompt = {json.dumps(INITIAL_PROMPT)}
"""
APPROVE = {"author": "Ada"}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """Models of all roles."""
    with serve_models() as url:
        yield url


@pytest.fixture(scope="module")
def server_url(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LangGraph's server with our graphs, which a settings file is for."""
    folder = tmp_path_factory.mktemp("langgraph")
    (folder / "drpo.toml").write_text(SETTINGS.replace("BASE_URL", base_url))
    environment = {"DRPO_CONFIG": str(folder / "drpo.toml"), "OPENAI_API_KEY": "unused", "DRPO_MODEL": "openai:world"}
    with run_langgraph_dev(environment, folder / "dev.log") as url:
        yield url


@pytest.fixture(scope="module")
def found(base_url: str) -> Mapping[str, Any]:
    """What each graph finds here."""

    async def find(name: str) -> Any:
        case = CASES[NAMES[name]]
        return found_in(await case.build(make_settings(base_url, max_calls=500), {}).ainvoke(case.given, RECURSION))

    return {name: asyncio.run(find(name)) for name in NAMES}


Run = Callable[[str, str, Any], Awaitable[Any]]
"""Runs a served graph, by the server's address and the graph's name, with an input; returns its last values."""


async def _wait(url: str, name: str, given: Any, *, has_thread: bool) -> Any:
    client = get_client(url=url)
    thread_id = (await client.threads.create())["thread_id"] if has_thread else None
    return await client.runs.wait(thread_id, name, input=given)


async def _stream(url: str, name: str, given: Any, *, mode: str) -> Any:
    client, last, kinds = get_client(url=url), None, []
    parts = client.runs.stream(None, name, input=given, stream_mode=[mode, "values"], stream_subgraphs=True)
    async for part in parts:
        assert part.event != "error", part.data
        if part.event == "values":
            last = part.data
        elif part.event.startswith("custom"):
            kinds.append(type(parse_event(json.dumps(part.data))))
    if mode == "custom":
        assert kinds[-1] in (RunFinished, ICLFinished)
    return last


async def _post(url: str, name: str, given: Any) -> Any:
    body = json.dumps({"assistant_id": name, "input": given}).encode()
    request = urllib.request.Request(f"{url}/runs/wait", body, {"Content-Type": "application/json"})
    return json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=120).read()))


async def _invoke_remote(url: str, name: str, given: Any) -> Any:
    return await RemoteGraph(name, url=url).ainvoke(given)


async def _invoke_remote_at_once(url: str, name: str, given: Any) -> Any:
    return await asyncio.to_thread(RemoteGraph(name, url=url).invoke, given)


async def _stream_remote(url: str, name: str, given: Any) -> Any:
    last, kinds = None, []
    parts = RemoteGraph(name, url=url).astream(given, stream_mode=["values", "custom"], subgraphs=True)
    async for place, mode, told in parts:
        if mode == "custom":
            kinds.append(type(parse_event(json.dumps(told))))
        elif not place:
            last = told
    assert kinds[-1] in (RunFinished, ICLFinished)
    return last


async def _invoke_in_a_parent(url: str, name: str, given: Any) -> Any:
    graph: Any = StateGraph(dict) if name == "icl" else StateGraph(ParentState, input_schema=ParentInput)
    graph.add_node("optimise", RemoteGraph(name, url=url))
    graph.add_edge(START, "optimise")
    graph.add_edge("optimise", END)
    return await graph.compile().ainvoke(given)


RUNS: Mapping[str, Run] = {
    "client, no thread": partial(_wait, has_thread=False),
    "client, thread": partial(_wait, has_thread=True),
    **{
        f"client, stream {mode}": partial(_stream, mode=mode)
        for mode in ("values", "updates", "custom", "messages-tuple", "events", "tasks", "checkpoints", "debug")
    },
    "HTTP": _post,
    "RemoteGraph ainvoke": _invoke_remote,
    "RemoteGraph invoke": _invoke_remote_at_once,
    "RemoteGraph astream": _stream_remote,
    "RemoteGraph as a node": _invoke_in_a_parent,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", RUNS)
async def test_a_served_graph_gives_the_same(run: str, name: str, server_url: str, found: Mapping[str, Any]) -> None:
    given = json.loads(json.dumps(CASES[NAMES[name]].given))
    assert found_in(await RUNS[run](server_url, name, given)) == found[name]


@asynccontextmanager
async def _threads(url: str) -> AsyncIterator[tuple[Any, str]]:
    client = get_client(url=url)
    yield client, (await client.threads.create())["thread_id"]


async def test_a_served_search_waits_for_decisions(server_url: str, found: Mapping[str, Any]) -> None:
    context, levels = {"approve": True}, []
    async with _threads(server_url) as (client, thread_id):
        output = await client.runs.wait(thread_id, "drpo", input=dict(CASES["search"].given), context=context)
        while asked := output.get("__interrupt__"):
            levels.append(asked[0]["value"]["level"])
            command = {"resume": APPROVE}
            output = await client.runs.wait(thread_id, "drpo", command=command, context=context)
    assert levels == [1]
    assert found_in(output) == found["drpo"]


@pytest.mark.parametrize("name", NAMES)
async def test_earlier_checkpoints_lead_to_the_same(name: str, server_url: str, found: Mapping[str, Any]) -> None:
    async with _threads(server_url) as (client, thread_id):
        await client.runs.wait(thread_id, name, input=dict(CASES[NAMES[name]].given))
        history = await client.threads.get_history(thread_id, limit=100)
        assert len(history) > 4
        for one in history:
            checkpoint_id = one["checkpoint"]["checkpoint_id"]
            output = await client.runs.wait(thread_id, name, input=None, checkpoint_id=checkpoint_id)
            assert found_in(output) == found[name]


@pytest.mark.parametrize("name", NAMES)
async def test_a_run_that_is_cancelled_goes_on(name: str, server_url: str, found: Mapping[str, Any]) -> None:
    async with _threads(server_url) as (client, thread_id):
        parts = client.runs.stream(
            thread_id,
            name,
            input=dict(CASES[NAMES[name]].given),
            stream_mode="custom",
            stream_subgraphs=True,
            on_disconnect="continue",
        )
        async for part in parts:
            if part.event.startswith("custom") and part.data["type"] == "call_finished":
                break
        (run,) = await client.runs.list(thread_id)
        await client.runs.cancel(thread_id, run["run_id"], wait=True)
        assert found_in(await client.runs.wait(thread_id, name, input=None)) == found[name]


@pytest.mark.parametrize("name", NAMES)
async def test_schemas_are_served(name: str, server_url: str) -> None:
    client = get_client(url=server_url)
    (assistant,) = await client.assistants.search(graph_id=name)
    schemas: Any = await client.assistants.get_schemas(assistant["assistant_id"])
    assert set(CASES[NAMES[name]].given) <= set(schemas["input_schema"]["properties"])
    assert "result" in schemas["output_schema"]["properties"]
    assert set(schemas["context_schema"]["properties"]) == set(CALLER_SETTINGS)


REFUSED = [
    ({"max_calls": 501}, "max_calls: the graph allows 500 at most"),
    ({"depth": "many"}, "depth: "),
    ({"depth": 0, "beam_size": -1}, "beam_size: "),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("context", "told"), REFUSED)
async def test_what_is_refused_is_told_in_our_words(
    context: Mapping[str, Any], told: str, name: str, server_url: str
) -> None:
    given = dict(CASES[NAMES[name]].given)
    parts = get_client(url=server_url).runs.stream(None, name, input=given, context=context)
    (error,) = [part.data async for part in parts if part.event == "error"]
    assert error["error"] == "SettingsError"
    assert told in error["message"]
    with pytest.raises(RemoteException, match=told):
        await RemoteGraph(name, url=server_url).ainvoke(given, context=context)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", [{"base_url": "http://evil.invalid/v1"}, {"templates": "/etc"}])
async def test_what_a_caller_may_not_set_has_no_effect(
    context: Mapping[str, Any], name: str, server_url: str, found: Mapping[str, Any]
) -> None:
    """LangGraph's server drops what is not in the schema of the context, before a graph could refuse it."""
    output = await get_client(url=server_url).runs.wait(
        None, name, input=dict(CASES[NAMES[name]].given), context=context
    )
    assert found_in(output) == found[name]


async def test_an_input_that_cannot_be_used_is_told_in_our_words(server_url: str) -> None:
    with pytest.raises(RemoteException, match="No training queries were given"):
        await RemoteGraph("drpo", url=server_url).ainvoke({"queries": []})
