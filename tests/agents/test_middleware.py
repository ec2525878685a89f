"""The middleware puts prompt and examples into each model request, and nothing into the agent's history."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from drpo_graph.agents import AlignmentMiddleware, PromptSlot
from drpo_graph.errors import EmbeddingsError, SettingsError, UsageError
from drpo_graph.inference import AlignedModel
from drpo_graph.records import ICLExample
from drpo_graph.registry import GENERAL_PROMPT, PromptRegistry, RegisteredPrompt
from drpo_graph.safety.installing import tell_install
from tests.agents.agents import ScriptedAgentModel, call_tool
from tests.docs.test_inference import RESULT
from tests.support.command import KEY, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = (ICLExample(query="1 + 1?", response="2"), ICLExample(query="2 + 2?", response="4"))
ASK: Any = {"messages": [("user", "3 + 3?")]}


class Retriever:
    """Finds the same examples for all queries, and notes those."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        self.queries.append(query)
        return EXAMPLES[:k]


@tool
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def answer_with_tool(messages: Sequence[BaseMessage]) -> AIMessage:
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(messages[-1].text)
    return call_tool("add", first=3, second=3)


def texts(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    return [(one.type, str(one.text)) for one in messages if str(one.text)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda body: Reply(["6"]), ServerOptions(log_bodies=True)) as server:
        yield server


def sent(server: FakeServer) -> list[dict[str, str]]:
    found = messages_of([entry["body"] for entry in server.log if entry["event"] == "start"][-1])
    assert found is not None
    return [{"role": one["role"], "content": one["content"]} for one in found]


@pytest.mark.parametrize("is_async", [True, False])
async def test_each_request_has_prompt_and_examples_and_the_state_has_neither(is_async: bool) -> None:
    model, retriever = ScriptedAgentModel(script=answer_with_tool), Retriever()
    middleware: Any = AlignmentMiddleware("Count well.", retriever=retriever, num_icl=2)
    agent = create_agent(
        model, tools=[add], system_prompt="You add.", middleware=[middleware], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "t"}}
    state = await agent.ainvoke(ASK, config) if is_async else agent.invoke(ASK, config)
    begin = [
        ("system", "Count well.\n\nYou add."),
        ("human", "1 + 1?"),
        ("ai", "2"),
        ("human", "2 + 2?"),
        ("ai", "4"),
        ("human", "3 + 3?"),
    ]
    assert texts(model.asked[0]) == begin
    assert texts(model.asked[1]) == [*begin, ("tool", "6")]
    # Once for the query, not once for each of the agent's calls; a question that is asked again is another query.
    assert retriever.queries == ["3 + 3?"]
    assert texts(state["messages"]) == [("human", "3 + 3?"), ("tool", "6"), ("ai", "6")]
    assert agent.get_state(config).values["messages"] == state["messages"]
    await agent.ainvoke(ASK, config)
    assert retriever.queries == ["3 + 3?", "3 + 3?"]


async def test_request_is_the_aligned_model_s_byte_for_byte(server: FakeServer) -> None:
    choices: Any = {"retriever": Retriever(), "num_icl": 2}
    await AlignedModel(model="openai:m", base_url=server.base_url, system_prompt=RESULT, **choices).ainvoke("3 + 3?")
    aligned = sent(server)
    middleware: Any = AlignmentMiddleware(RESULT, **choices)
    model = ChatOpenAI(model="m", base_url=server.base_url)
    await create_agent(model, middleware=[middleware]).ainvoke(ASK)
    assert sent(server) == aligned


@pytest.mark.parametrize("base", [{}, {"endpoint": "completions", "prompt_format": "flat"}])
async def test_aligned_model_in_an_agent_has_the_prompt_once(server: FakeServer, base: dict[str, str]) -> None:
    from drpo_graph import build_settings

    settings = build_settings({"base": base, "max_outage_s": 0})
    place: Any = {"model": "openai:m", "base_url": server.base_url, "settings": settings}
    choices: Any = {"retriever": Retriever(), "num_icl": 2}
    bodies = []
    for model, middleware in [
        (AlignedModel(**place, system_prompt="Count well.", **choices), []),
        (AlignedModel(**place), [AlignmentMiddleware("Count well.", **choices)]),
    ]:
        made: Any = middleware
        state = await create_agent(model, middleware=made).ainvoke(ASK)
        assert state["messages"][-1].text == "6"
        bodies.append([entry["body"] for entry in server.log if entry["event"] == "start"][-1])
    assert bodies[0] == bodies[1]
    assert str(bodies[0]).count("Count well.") == 1


async def test_aligned_model_keeps_its_own_prompt_where_the_middleware_has_none(server: FakeServer) -> None:
    model = AlignedModel(model="openai:m", base_url=server.base_url, system_prompt="Its own.")
    middleware: Any = AlignmentMiddleware(retriever=Retriever(), num_icl=1)
    await create_agent(model, system_prompt="You add.", middleware=[middleware]).ainvoke(ASK)
    assert [one["content"] for one in sent(server)] == ["Its own.\n\nYou add.", "1 + 1?", "2", "3 + 3?"]


@dynamic_prompt
def tell_shelf(request: ModelRequest) -> str:
    return "The shelf is full."


@pytest.mark.parametrize("is_aligned", [False, True])
@pytest.mark.parametrize(
    ("around", "expected"),
    [
        (AlignmentMiddleware("Count well.", name="first"), "Say why.\n\nCount well.\n\nYou add."),
        (tell_shelf, "Say why.\n\nThe shelf is full."),
    ],
)
async def test_a_prompt_stands_before_that_of_the_middleware_around_it(
    around: Any, expected: str, is_aligned: bool, server: FakeServer
) -> None:
    place: Any = {"model": "openai:m" if is_aligned else "m", "base_url": server.base_url}
    model = AlignedModel(**place, system_prompt="Its own.") if is_aligned else ChatOpenAI(**place)
    agent = create_agent(model, system_prompt="You add.", middleware=[around, AlignmentMiddleware("Say why.")])
    await agent.ainvoke(ASK)
    assert sent(server) == [{"role": "system", "content": expected}, {"role": "user", "content": "3 + 3?"}]


async def test_slot_is_read_at_each_request(tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="One.")
    model = ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    middleware: Any = AlignmentMiddleware(slot)
    agent = create_agent(model, middleware=[middleware])
    for text in ("One.", "Two."):
        slot.swap(text)
        await agent.ainvoke(ASK)
        assert model.asked[-1][0].text == text


async def test_registry_is_asked_for_the_request_s_model(tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    registry.add(RegisteredPrompt(model="openai:known", system_prompt="For known.", placeholders=None))
    registry.add(RegisteredPrompt(model="plain", system_prompt="For plain."))
    model = ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    for name, text in {"plain": "For plain.", "openai:known": "For known.", "other": GENERAL_PROMPT}.items():
        middleware: Any = AlignmentMiddleware(registry=registry, model=None if name == "other" else name)
        await create_agent(model, middleware=[middleware]).ainvoke(ASK)
        assert model.asked[-1][0].text == text


async def test_provider_is_part_of_the_model_s_name(server: FakeServer, tmp_path: Path) -> None:
    registry = PromptRegistry(tmp_path)
    registry.add(RegisteredPrompt(model="openai:known", system_prompt="For known."))
    middleware: Any = AlignmentMiddleware(registry=registry)
    await create_agent(ChatOpenAI(model="known", base_url=server.base_url), middleware=[middleware]).ainvoke(ASK)
    assert sent(server)[0]["content"] == "For known."


async def test_tokens_stream(server: FakeServer) -> None:
    middleware: Any = AlignmentMiddleware("Count well.")
    agent = create_agent(ChatOpenAI(model="m", base_url=server.base_url), middleware=[middleware])
    pieces = [part[0].text async for part in agent.astream(ASK, stream_mode="messages")]
    assert "".join(pieces) == "6"


async def test_placeholders_are_filled_once(tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="Help {user}.", placeholders="format")
    model = ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    middleware: Any = AlignmentMiddleware(slot, values={"user": "{Ann}"})
    await create_agent(model, middleware=[middleware]).ainvoke(ASK)
    assert model.asked[-1][0].text == "Help {Ann}."
    with pytest.raises(SettingsError, match="'user'"):
        AlignmentMiddleware(slot)


async def test_blocks_of_the_agent_s_own_system_message_stay() -> None:
    own = SystemMessage([{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}])
    model = ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    middleware: Any = AlignmentMiddleware("Count well.")
    await create_agent(model, system_prompt=own, middleware=[middleware]).ainvoke(ASK)
    content = model.asked[-1][0].content
    assert content == [{"type": "text", "text": "Count well.\n\n"}, *own.content]


async def test_query_without_text_has_no_examples() -> None:
    retriever, model = Retriever(), ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    middleware: Any = AlignmentMiddleware("Look.", retriever=retriever, num_icl=2)
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])
    await create_agent(model, middleware=[middleware]).ainvoke({"messages": [picture]})
    assert (len(model.asked[-1]), retriever.queries) == (2, [])


async def test_failed_retrieval_is_our_error_and_tried_again() -> None:
    class Failing(Retriever):
        async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
            if not self.queries:
                self.queries.append(query)
                raise EmbeddingsError("The embeddings are out of reach.")
            return await super().retrieve(query, k=k)

    model = ScriptedAgentModel(script=lambda messages: AIMessage("Yes."))
    middleware: Any = AlignmentMiddleware("Look.", retriever=Failing(), num_icl=1)
    agent = create_agent(model, middleware=[middleware])
    message: Any = {"messages": [HumanMessage("3 + 3?", id="same")]}
    with pytest.raises(EmbeddingsError):
        await agent.ainvoke(message)
    await agent.ainvoke(message)
    assert len(model.asked[-1]) == 4


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"prompt": "  "}, "blank"),
        ({"num_icl": 6, "retriever": Retriever()}, "0 to 5"),
        ({"num_icl": 1}, "Give a retriever"),
    ],
)
def test_wrong_choices_are_told_when_it_is_made(choices: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        AlignmentMiddleware(**choices)


def test_without_langchain_the_extra_is_named_and_the_rest_works() -> None:
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "import drpo_graph.inference, drpo_graph.runs.app_prompts\n"
        "from drpo_graph.errors import UsageError\n"
        "try:\n    import drpo_graph.agents\n"
        "except UsageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "needs the extra `agents`" in done.stdout
    assert tell_install("agents") in done.stdout
