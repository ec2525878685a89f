"""An agent optimises a prompt with a tool: in bounds, in its stream, as a run of its own."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from drpo_graph import EventTransformer, Parts, Query, ReviewRequest, Reward, RunOptions, decide, optimize, resume
from drpo_graph.agents import PromptSlot, ToolRules, make_optimize_tool
from drpo_graph.errors import BudgetSpentError, SettingsError
from drpo_graph.events.schema import Event, LevelFinished, RunStarted, parse_event
from drpo_graph.runs.reading import load_run
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.sqlite_file import SqliteStorage, open_checkpoint
from tests.agents.agents import ScriptedAgentModel, call_tool
from tests.support.command import finished_keys, serve
from tests.support.fake_server import FakeServer, Reply, ServerOptions
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


@pytest.mark.parametrize("version", ["astream", "v2", "v3"])
async def test_a_streamed_agent_is_told_of_stops_and_of_what_goes_on(
    server: FakeServer, tmp_path: Path, version: str
) -> None:
    tool = make_tool(server, tmp_path, depth=4)
    told: list[Event] = []

    async def ask(**arguments: object) -> str:
        agent, before = agent_that_calls(tool, **arguments), len(told)
        if version == "astream":
            told.extend([parse_event(part) async for part in agent.astream(ASK, stream_mode="custom")])
        elif version == "v2":
            events = [one async for one in agent.astream_events(ASK, version="v2")]
            chunks = [
                one["data"]["chunk"] for one in events if one["event"] == "on_chain_stream" and not one["parent_ids"]
            ]
            assert chunks
        else:
            stream = await agent.astream_events(ASK, version="v3", transformers=[EventTransformer])
            told.extend([event async for event in stream.extensions["drpo"]])
        return "" if version == "v2" else told[before].run_id

    run_id = await ask(max_calls=3)
    if version == "v2":
        return
    assert [one.type for one in told][-1] == "run_stopped"
    num_told = len(told)
    assert await ask(thread_id=run_id, max_calls=60) == run_id
    first, *_, last = told[num_told:]
    assert isinstance(first, RunStarted)
    assert first.is_resumed
    assert last.type == "run_finished"


async def test_a_sink_that_holds_a_stream_writer_writes_into_the_stream_it_is_from(
    server: FakeServer, tmp_path: Path
) -> None:
    settings = scripted_settings(server.base_url, depth=3, max_calls=3, initial_prompt=INITIAL)

    async def optimise(state: dict[str, Any]) -> dict[str, Any]:
        write = get_stream_writer()
        options = RunOptions(checkpoint=tmp_path / "runs.sqlite", sinks=(lambda event: write({"kind": event.type}),))
        with pytest.raises(BudgetSpentError):
            await optimize(QUERIES, settings=settings, options=options, parts=Parts(critic=reward_length))
        return {}

    graph: Any = StateGraph(dict)
    graph.add_node("optimise", optimise)
    graph.add_edge(START, "optimise")
    graph.add_edge("optimise", END)
    kinds = [part["kind"] async for part in graph.compile().astream({}, stream_mode="custom")]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_stopped")


def test_agent_that_is_called_synchronously_streams_too(server: FakeServer, tmp_path: Path) -> None:
    agent = agent_that_calls(make_tool(server, tmp_path))
    parts = list(agent.stream(ASK, stream_mode=["custom", "values"]))
    assert [parse_event(part).type for mode, part in parts if mode == "custom"][-1] == "run_finished"
    assert BETTER in parts[-1][1]["messages"][-1].text


async def test_interrupt_is_told_and_the_run_continued_without_repeating_a_call(
    server: FakeServer, tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, LevelFinished) and event.level == 1:
            os.kill(os.getpid(), signal.SIGINT)

    settings = scripted_settings(server.base_url, depth=4, max_calls=60, initial_prompt=INITIAL)
    options = RunOptions(checkpoint=tmp_path / "runs.sqlite", handles_signals=True, sinks=(interrupt,))
    parts = Parts(critic=reward_length)
    told = await make_optimize_tool(settings, queries=QUERIES, options=options, parts=parts).ainvoke({})
    found = re.search(r"again with thread_id='(optimize_prompt-[\w-]+)': no finished call is made twice\.$", told)
    assert told.startswith("The optimisation was stopped. ")
    assert found is not None, told
    told = await make_optimize_tool(
        settings, queries=QUERIES, options=RunOptions(checkpoint=tmp_path / "runs.sqlite"), parts=parts
    ).ainvoke({"thread_id": found[1]})
    assert told.startswith("The optimisation is finished.")
    assert len(finished_keys(server)) == len(set(finished_keys(server)))


async def test_agent_that_is_resumed_in_the_middle_of_a_call_continues_its_run(
    server: FakeServer, tmp_path: Path
) -> None:
    tasks: list[asyncio.Task[object]] = []

    def stop(event: Event) -> None:
        if isinstance(event, LevelFinished) and event.level == 1:
            tasks.pop().cancel()

    settings = scripted_settings(server.base_url, depth=4, max_calls=60, initial_prompt=INITIAL)
    options, parts = RunOptions(checkpoint=tmp_path / "runs.sqlite"), Parts(critic=reward_length)
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "talk"}}
    stopping = replace(options, sinks=(stop,))
    agent = agent_that_calls(
        make_optimize_tool(settings, queries=QUERIES, options=stopping, parts=parts), checkpointer=saver
    )
    tasks.append(asyncio.create_task(agent.ainvoke(ASK, config)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    num_calls = len(finished_keys(server))
    agent = agent_that_calls(
        make_optimize_tool(settings, queries=QUERIES, options=options, parts=parts), checkpointer=saver
    )
    told = (await agent.ainvoke(None, config))["messages"][-1].text
    assert "The optimisation is finished." in told
    assert 0 < num_calls < len(finished_keys(server)) == len(set(finished_keys(server)))


async def test_search_is_longer_than_langchain_s_limit_of_steps(server: FakeServer, tmp_path: Path) -> None:
    tool = make_tool(server, tmp_path, depth=16, max_calls=200)
    told = await agent_that_calls(tool).ainvoke(ASK, {"recursion_limit": 25})
    assert "levels searched: 15" in told["messages"][-1].text


async def test_model_can_choose_less_and_never_more(server: FakeServer, tmp_path: Path) -> None:
    tool = make_tool(server, tmp_path, max_time=60, depth=3)
    for arguments, told in {
        ("max_calls", 61): "max_calls: Input should be less than or equal to 60",
        ("max_time", 61): "max_time",
        ("depth", 4): "depth",
        ("num_queries", 3): "num_queries",
        # A cap that the developer did not set, and what no model may choose.
        ("max_cost", 1): "max_cost: there is no such argument",
        ("base_url", "http://elsewhere/v1"): "base_url: there is no such argument",
        ("critic_model", "openai:other"): "critic_model: there is no such argument",
        ("reward", "os:system"): "reward: there is no such argument",
        ("queries", "Mine?"): "queries: there is no such argument",
    }.items():
        answer = await tool.ainvoke(dict([arguments]))
        assert answer.startswith("Not started, and nothing was spent. ")
        assert told in answer
    assert server.finished == []
    assert not (tmp_path / "runs.sqlite").exists()


async def test_spent_budget_is_told_with_how_to_continue_and_then_only_the_developer_can(
    server: FakeServer, tmp_path: Path
) -> None:
    tool = make_tool(server, tmp_path, depth=6, max_calls=4)
    told = await tool.ainvoke({"max_calls": 2})
    found = re.search(r"thread_id='(optimize_prompt-[\w-]+)' and a larger max_calls \(at most 4\)\.$", told)
    assert found is not None, told
    assert told.startswith("The budget is spent.")
    told = await tool.ainvoke({"thread_id": found[1]})
    assert len(server.finished) == 4
    assert "as large as the developer allows" in told
    assert f"`drpo resume {found[1]} --max-calls 8`" in told
    result = await resume(
        found[1],
        options=RunOptions(checkpoint=tmp_path / "runs.sqlite"),
        parts=Parts(critic=reward_length),
        changes={"max_calls": 60},
    )
    assert result.system_prompt == BETTER


async def test_only_so_many_runs_are_started_and_only_its_own_continued(server: FakeServer, tmp_path: Path) -> None:
    tool = make_tool(server, tmp_path)
    options = RunOptions(checkpoint=tmp_path / "runs.sqlite")
    settings = scripted_settings(server.base_url)
    await optimize(QUERIES, settings=settings, thread_id="mine", options=options, parts=Parts(critic=reward_length))
    assert "none of this tool's" in await tool.ainvoke({"thread_id": "mine"})
    assert "There is no run" in await tool.ainvoke({"thread_id": "optimize_prompt-x"})
    assert "finished" in await tool.ainvoke({})
    num_calls = len(server.finished)
    assert "allows 1 new run(s)" in await tool.ainvoke({})
    assert len(server.finished) == num_calls


async def test_model_s_own_queries_are_used_where_the_developer_lets_it(server: FakeServer, tmp_path: Path) -> None:
    tool = make_tool(server, tmp_path, rules=ToolRules(max_own_queries=1))
    assert "queries" in await tool.ainvoke({"queries": ["One?", "Two?"]})
    assert server.finished == []
    seen: list[str] = []

    async def note(query: Query, response: str) -> Reward:
        seen.append(query.text)
        return Reward(score=3.0)

    settings = scripted_settings(server.base_url, max_calls=60)
    tool = make_optimize_tool(
        settings,
        queries=QUERIES,
        rules=ToolRules(max_own_queries=1),
        options=RunOptions(checkpoint=tmp_path / "runs.sqlite"),
        parts=Parts(critic=note),
    )
    assert "finished" in await tool.ainvoke({"queries": ["Mine?"], "num_queries": 2})
    assert set(seen) == {"Mine?"}


async def test_better_prompt_is_put_into_the_slot_that_the_run_began_with(server: FakeServer, tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "slot.json", initial="Answer, please.")
    told = await make_tool(server, tmp_path, slot=slot).ainvoke({})
    assert "it is in use now, as version 2: its reward is 4.00, the initial prompt's 2.00" in told
    current = slot.current
    assert (current.text, current.reward, current.initial_reward) == (BETTER, 4.0, 2.0)
    assert f"run: {current.run}" in told
    # A run that is told again finds another prompt in use than it began with.
    assert "it is the prompt in use" in await make_tool(server, tmp_path, slot=slot).ainvoke({"thread_id": current.run})
    slot.swap("Something else.")
    told = await make_tool(server, tmp_path, slot=slot).ainvoke({"thread_id": current.run})
    assert "not put in use: the run began with another prompt" in told
    assert slot.current.version == 3


async def test_prompt_without_a_significant_gain_is_not_put_in_use(server: FakeServer, tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "slot.json", initial=INITIAL)
    tool = make_tool(server, tmp_path, slot=slot, rules=ToolRules(swap_when="significant"))
    assert "not put in use: nothing was held out" in await tool.ainvoke({})
    assert slot.current.version == 1


async def test_failures_are_told_and_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    with serve(lambda body: Reply(status=401, error_message="no"), ServerOptions()) as server:
        told = await make_tool(server, tmp_path).ainvoke({})
    assert told.startswith("The optimisation was stopped. ")
    assert "again with thread_id='optimize_prompt-" in told


def test_tool_without_a_cap_is_refused(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="max_calls, max_tokens, max_cost, max_time"):
        make_tool(server, tmp_path, max_calls=None)


async def test_run_that_waits_for_a_person_is_gone_on_with_after_the_decision(
    server: FakeServer, tmp_path: Path
) -> None:
    tool = make_tool(server, tmp_path, approve=True, depth=2)
    told = await tool.ainvoke({})
    found = re.search(r"`drpo review (\S+)`", told)
    assert found is not None, told
    thread_id = found[1]
    assert "A person has to decide" in told
    await decide(thread_id, {"author": "Ada"}, checkpoint=tmp_path / "runs.sqlite")
    assert BETTER in await tool.ainvoke({"thread_id": thread_id})


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("is_async", [True, False])
async def test_reviews_are_asked_in_the_agent_s_graph(
    server: FakeServer, tmp_path: Path, is_async: bool, is_restarted: bool
) -> None:
    saver, config = InMemorySaver(), RunnableConfig(configurable={"thread_id": "talk"})
    tool = make_tool(server, tmp_path, approve=True, depth=4)
    agent = agent_that_calls(tool, checkpointer=saver)

    async def ask(given: Any) -> Any:
        nonlocal agent
        if is_restarted:
            agent = agent_that_calls(make_tool(server, tmp_path, approve=True, depth=4), checkpointer=saver)
        return await agent.ainvoke(given, config) if is_async else await asyncio.to_thread(agent.invoke, given, config)

    def question(state: Any) -> ReviewRequest:
        (asked,) = state["__interrupt__"]
        return ReviewRequest.model_validate(asked.value)

    first = question(await ask(ASK))
    # What is no decision is answered by the same question again.
    again = question(await ask(Command(resume={"author": "Ada", "veto": ["none"]})))
    assert (again.level, "no candidate 'none'" in again.problem) == (first.level, True)
    second = question(await ask(Command(resume={"author": "Ada"})))
    assert (second.level, second.problem) == (first.level + 1, "")
    # Decided elsewhere: the answer that the agent is gone on with is none to the level after it.
    await decide(second.run_id, {"author": "Bob"}, checkpoint=tmp_path / "runs.sqlite")
    third = question(await ask(Command(resume={"author": "Ada"})))
    assert third.level == second.level + 1
    last = await ask(Command(resume={"author": "Ada"}))
    assert "__interrupt__" not in last
    assert BETTER in last["messages"][-1].text
    run = await load_run(SqliteStorage(tmp_path / "runs.sqlite"), first.run_id)
    assert {level: one.author for level, one in run.decisions.items()} == {
        first.level: "Ada",
        second.level: "Bob",
        third.level: "Ada",
    }
    keys = finished_keys(server)
    assert len(keys) == len(set(keys))
