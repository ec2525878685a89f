"""An agent optimises a prompt with a tool: in bounds, in its stream, as a run of its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from drpo_graph import Parts, Query, Reward, RunOptions, optimize
from drpo_graph.agents import PromptSlot, ToolRules, make_optimize_tool
from drpo_graph.checkpoint import open_checkpoint
from drpo_graph.errors import SettingsError
from drpo_graph.events import parse_event
from drpo_graph.settings import Settings
from tests.agents.agents import ScriptedAgentModel, call_tool
from tests.support.command import serve
from tests.support.fake_server import FakeServer, ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

INITIAL, BETTER = "Answer.", "Answer briefly, then say why."
QUERIES = ["Why is the sky blue?", "What is rain?"]


async def reward_length(query: Query, response: str) -> Reward:
    return Reward(score=4.0 if response == BETTER else 2.0, feedback="Say why.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(ScriptedApp([BETTER]), ServerOptions()) as server:
        yield server


def make_tool(server: FakeServer, folder: Path, rules: ToolRules | None = None, **values: Any) -> StructuredTool:
    slot = values.pop("slot", None)
    pool = {"pool_size": 1, "max_calls": 60, "initial_prompt": INITIAL, "skip_threshold": 5.0}
    settings: Settings = scripted_settings(server.base_url, **{**pool, **values})
    options = RunOptions(checkpoint=folder / "runs.sqlite")
    parts = Parts(critic=reward_length)
    return make_optimize_tool(settings, queries=QUERIES, slot=slot, rules=rules, options=options, parts=parts)


def agent_that_calls(tool: StructuredTool, *, checkpointer: InMemorySaver | None = None, **arguments: object) -> Any:
    def script(messages: Sequence[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage(f"It said: {messages[-1].text}")
        return call_tool(tool.name, **arguments)

    return create_agent(ScriptedAgentModel(script=script), tools=[tool], checkpointer=checkpointer)


ASK: Any = {"messages": [("user", "Improve yourself.")]}


@pytest.mark.parametrize("is_checkpointed", [False, True])
async def test_agent_is_told_what_was_found_and_its_stream_shows_the_run(
    server: FakeServer, tmp_path: Path, is_checkpointed: bool
) -> None:
    saver = InMemorySaver() if is_checkpointed else None
    agent = agent_that_calls(make_tool(server, tmp_path), checkpointer=saver, max_calls=40)
    events, last = [], None
    config: Any = {"configurable": {"thread_id": "talk"}}
    async for mode, part in agent.astream(ASK, config, stream_mode=["custom", "values"]):
        if mode == "custom":
            events.append(parse_event(part))
        else:
            last = part["messages"][-1].text
    assert last is not None
    assert BETTER in last
    assert "reward: 4.00 (initial prompt: 2.00)" in last
    kinds = [one.type for one in events]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    assert "rollout_scored" in kinds
    thread_id = events[0].run_id
    assert f"run: {thread_id}" in last
    # The run is in its own checkpoint, and nothing of it in the agent's.
    async with open_checkpoint(tmp_path / "runs.sqlite") as checkpoint:
        assert await checkpoint.saver.aget_tuple({"configurable": {"thread_id": thread_id}}) is not None
    if saver is not None:
        assert {one.config["configurable"]["thread_id"] for one in saver.list(None)} == {"talk"}
        assert {one.config["configurable"]["checkpoint_ns"] for one in saver.list(None)} == {""}


async def test_search_is_longer_than_langchain_s_limit_of_steps(server: FakeServer, tmp_path: Path) -> None:
    tool = make_tool(server, tmp_path, depth=16, max_calls=200)
    told = await agent_that_calls(tool).ainvoke(ASK, {"recursion_limit": 25})
    assert "levels searched: 15" in told["messages"][-1].text
