"""A run inside another graph's node takes nothing over from that graph."""

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from drpo_graph import Parts, Query, Reward, RunOptions, optimize
from drpo_graph.storage.sqlite_file import open_checkpoint
from tests.support.command import serve
from tests.support.fake_server import ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings


class State(TypedDict, total=False):
    prompt: str


class NodeNames(AsyncCallbackHandler):
    """Notes what is started."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.names.append(kwargs.get("name") or "")


async def reward(query: Query, response: str) -> Reward:
    return Reward(score=3.0)


async def test_metadata_callbacks_and_checkpoints_stay_with_the_outer_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    options, saver, seen = RunOptions(checkpoint=tmp_path / "c.sqlite"), InMemorySaver(), NodeNames()
    with serve(ScriptedApp(["Answer well."]), ServerOptions()) as server:
        settings = scripted_settings(server.base_url)

        async def improve(state: State) -> State:
            parts = Parts(critic=reward)
            result = await optimize(["Why?"], settings=settings, thread_id="inner", options=options, parts=parts)
            return {"prompt": result.system_prompt}

        graph = StateGraph(State)
        graph.add_node("improve", improve)
        graph.add_edge(START, "improve")
        config: Any = {
            "configurable": {"thread_id": "outer"},
            "metadata": {"user": "ann"},
            "callbacks": [seen],
            "max_concurrency": 1,
        }
        await graph.compile(checkpointer=saver).ainvoke({}, config)
    assert "improve" in seen.names
    assert "score_beams" not in seen.names
    assert {one.config["configurable"]["thread_id"] for one in saver.list(None)} == {"outer"}
    async with open_checkpoint(options.checkpoint) as checkpoint:  # type: ignore[arg-type]
        found = [one async for one in checkpoint.saver.alist({"configurable": {"thread_id": "inner"}})]
    assert found
    assert not any("user" in one.metadata for one in found)
