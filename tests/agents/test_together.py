"""Middleware and tool with one slot: an agent improves the prompt that it works under, in one conversation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from drpo_graph import Parts, Query, Reward, RunOptions
from drpo_graph.agents import AlignmentMiddleware, PromptSlot, make_optimize_tool
from tests.agents.agents import ScriptedAgentModel, call_tool
from tests.support.command import serve
from tests.support.fake_server import ServerOptions
from tests.support.scripted_app import ScriptedApp, scripted_settings

BETTER = "Answer {user} briefly."


async def reward(query: Query, response: str) -> Reward:
    return Reward(score=4.0 if "briefly" in response else 2.0)


def script(messages: Sequence[BaseMessage]) -> AIMessage:
    return AIMessage("Done.") if isinstance(messages[-1], ToolMessage) else call_tool("optimize_prompt")


async def test_prompt_that_the_agent_finds_is_the_one_of_its_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    slot = PromptSlot(tmp_path / "s.json", initial="Help {user}.", placeholders="format")
    queries = [Query(id="q", text="Why?", values={"user": "Ann"})]
    # The first rewrite loses the placeholder, and is not used.
    with serve(ScriptedApp(["Answer briefly.", BETTER]), ServerOptions()) as server:
        settings = scripted_settings(server.base_url, pool_size=1, max_calls=60)
        tool = make_optimize_tool(
            settings,
            queries=queries,
            slot=slot,
            options=RunOptions(checkpoint=tmp_path / "runs.sqlite"),
            parts=Parts(critic=reward),
        )
        model, middleware = ScriptedAgentModel(script=script), AlignmentMiddleware(slot, values={"user": "Ben"})
        made: Any = middleware
        agent = create_agent(model, tools=[tool], middleware=[made], checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "t"}, "max_concurrency": 1}
        ask: Any = {"messages": [("user", "Improve yourself.")]}
        parts = [part async for part in agent.astream(ask, config, stream_mode=["custom", "messages"])]
    assert [messages[0].text for messages in model.asked] == ["Help Ben.", "Answer Ben briefly."]
    assert (slot.current.version, slot.current.text) == (2, BETTER)
    # What the run asks its models is in its own events, not among the agent's messages.
    assert {part[1]["langgraph_node"] for mode, part in parts if mode == "messages"} == {"model", "tools"}
    assert sum(mode == "custom" for mode, _ in parts) > 5
