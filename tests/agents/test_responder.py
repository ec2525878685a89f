"""An agent in the base model's place: what it does is the response, and each query is a run of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from drpo_graph.agents import AgentResponder
from drpo_graph.errors import FailureKind, ReplyError, UsageError
from drpo_graph.parts.responders import ask_responder
from drpo_graph.records import Query, Turn
from tests.agents.agents import ScriptedAgentModel, call_tool

QUERY = Query(id="q", text="Now?", history=(Turn(role="user", content="Once?"), Turn(role="assistant", content="So.")))


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def script(messages: Sequence[BaseMessage]) -> AIMessage:
    return AIMessage("It is 14.") if messages[-1].type == "tool" else call_tool("double", number=7)


def of_node(node: Callable[[MessagesState], Any], **compiled: Any) -> Runnable[Any, Any]:
    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile(**compiled)


async def test_response_is_what_the_agent_adds_to_query_and_history() -> None:
    model = ScriptedAgentModel(script=script)
    responder = AgentResponder(lambda prompt: create_agent(model, [double], system_prompt=prompt))
    assert [one.type for one in await responder.respond("Count.", QUERY)] == ["ai", "tool", "ai"]
    text = await ask_responder(responder, "Count.", QUERY, timeout_s=60)
    assert text == '[tool call] double\n> {"number": 7}\n\n[tool result] double\n> 14\n\n[answer]\nIt is 14.'
    assert [(one.type, one.text) for one in model.asked[0]] == [
        ("system", "Count."),
        ("human", "Once?"),
        ("ai", "So."),
        ("human", "Now?"),
    ]


def fail(state: MessagesState) -> None:
    raise OSError("no way with password=hunter2hunter2")


def refuse(state: MessagesState) -> None:
    raise ReplyError("not this", kind="refused")


def wait(state: MessagesState) -> None:
    interrupt("May I?")


@pytest.mark.parametrize(
    ("node", "kind", "told"),
    [
        (fail, "unavailable", r"^query 'q': the agent failed: OSError: no way with password=\*\*\*$"),
        (refuse, "refused", "^not this"),
        (wait, "unavailable", "waits for a person"),
    ],
)
async def test_agent_that_fails_leaves_the_query_unscored(node: Any, kind: FailureKind, told: str) -> None:
    with pytest.raises(ReplyError, match=told) as caught:
        await AgentResponder(lambda _: of_node(node, checkpointer=InMemorySaver())).respond("p", QUERY)
    assert caught.value.kind == kind


async def test_agent_without_an_end_is_stopped() -> None:
    model = ScriptedAgentModel(script=lambda messages: call_tool("double", number=7))
    responder = AgentResponder(lambda prompt: create_agent(model, [double]), recursion_limit=6)
    with pytest.raises(ReplyError, match="no answer within 6 steps") as caught:
        await responder.respond("p", QUERY)
    assert caught.value.kind == "truncated"
    assert len(model.asked) == 3


async def test_agents_are_made_once_for_each_prompt_and_the_last_ones_kept() -> None:
    made: list[str] = []

    def make(prompt: str) -> Runnable[Any, Any]:
        made.append(prompt)
        if not prompt:
            raise UsageError("no prompt")
        # A thread of its own: an agent that remembers has nothing to remember.
        return of_node(
            lambda state: {"messages": [AIMessage(str(len(state["messages"])))]}, checkpointer=InMemorySaver()
        )

    responder = AgentResponder(make, identity="mine")
    assert responder.identity == "mine"
    prompts = [f"p{number}" for number in range(33)]
    for prompt in [*prompts, *prompts[1:], prompts[0]]:
        assert [one.text for one in await responder.respond(prompt, QUERY)] == ["3"]
    assert made == [*prompts, prompts[0]]
    with pytest.raises(UsageError, match="no prompt"):
        await responder.respond("", QUERY)


async def test_state_without_messages_is_told() -> None:
    class Odd(AgentResponder):
        def _agent_for(self, prompt: str) -> Runnable[Any, Any]:
            return super()._agent_for(prompt) | (lambda state: state["messages"])

    with pytest.raises(ReplyError, match="no list of messages"):
        await Odd(lambda prompt: of_node(lambda state: {"messages": []})).respond("p", QUERY)


async def test_agent_is_a_run_of_its_own_inside_of_other_graphs() -> None:
    seen: list[Any] = []

    def look(state: MessagesState) -> dict[str, list[BaseMessage]]:
        seen.append(get_config())
        return {"messages": [AIMessage("Yes.")]}

    responder = AgentResponder(lambda prompt: of_node(look))

    async def ask(state: MessagesState) -> dict[str, list[Any]]:
        own = get_config()
        added = await responder.respond("p", QUERY)
        # The graph around it goes on as it was.
        assert get_config() == own
        return {"messages": [SystemMessage("p"), *added]}

    config: Any = {"tags": ["outer"], "metadata": {"outer": "1"}, "configurable": {"thread_id": "outer", "mine": 1}}
    parent = of_node(ask, checkpointer=InMemorySaver())
    parts = [part async for part in parent.astream({"messages": [HumanMessage("?")]}, config, subgraphs=True)]
    assert len(parts) == 1
    (inner,) = seen
    assert "outer" not in str({name: inner.get(name) for name in ("tags", "metadata")})
    assert "mine" not in inner["configurable"]
    assert inner["configurable"]["thread_id"] != "outer"
    assert "|" not in inner["configurable"]["checkpoint_ns"]
