"""The middleware asks a chooser once for each message of the user, however many calls the agent makes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from drpo_graph.agents import AlignmentMiddleware, PromptSlot
from drpo_graph.errors import RewardModelError, SettingsError
from drpo_graph.inference import AlignedModel
from drpo_graph.parts.choosers import PromptChoice
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from tests.agents.agents import ScriptedAgentModel
from tests.agents.test_middleware import Retriever, add, answer_with_tool
from tests.support.choosers import BEST, FORBIDDEN, PROMPT_BY_QUERY, FakeChooser, RouterReader, write_router
from tests.support.command import KEY, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions

CHOSEN, BRACES, OTHER = "3 + 3?", "What is rain?", "Why?"


@dataclass
class Silent:
    """Chooses as another one does, and does not tell its prompts beforehand."""

    best_prompt: str
    other: FakeChooser

    async def achoose(self, query: str) -> PromptChoice:
        return await self.other.achoose(query)


async def _invoke(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    messages: list[BaseMessage] = agent.invoke(given, config)["messages"]  # In a running loop.
    return messages


async def _ainvoke(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    messages: list[BaseMessage] = (await agent.ainvoke(given, config))["messages"]
    return messages


async def _stream(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    *_, last = agent.stream(given, config, stream_mode="values")
    messages: list[BaseMessage] = last["messages"]
    return messages


async def _astream(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    *_, last = [one async for one in agent.astream(given, config, stream_mode="values")]
    messages: list[BaseMessage] = last["messages"]
    return messages


async def _batch(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    messages: list[BaseMessage] = agent.batch([given], config)[0]["messages"]
    return messages


async def _abatch(agent: Any, given: Any, config: Any = None) -> list[BaseMessage]:
    messages: list[BaseMessage] = (await agent.abatch([given], config))[0]["messages"]
    return messages


Call = Callable[..., Awaitable[list[BaseMessage]]]
CALLS = [_invoke, _ainvoke, _stream, _astream, _batch, _abatch]


def ask(query: str) -> dict[str, Any]:
    return {"messages": [("user", query)]}


def say_yes(messages: Sequence[BaseMessage]) -> AIMessage:
    return AIMessage("Yes.")


def make_agent(middleware: Any, model: Any = None, **choices: Any) -> Any:
    return create_agent(model or ScriptedAgentModel(script=say_yes), middleware=[middleware], **choices)


@pytest.mark.parametrize("call", CALLS)
async def test_choice_is_made_once_for_a_message_however_many_calls_it_takes(call: Call) -> None:
    chooser, model, retriever = FakeChooser(), ScriptedAgentModel(script=answer_with_tool), Retriever()
    middleware = AlignmentMiddleware(chooser, retriever=retriever, num_icl=1)
    agent = make_agent(middleware, model, tools=[add], system_prompt="You add.", checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    messages = await call(agent, ask(CHOSEN), config)
    assert [str(asked[0].text) for asked in model.asked] == [f"{PROMPT_BY_QUERY[CHOSEN]}\n\nYou add."] * 2
    assert [one.type for one in messages] == ["human", "ai", "tool", "ai"]
    # A question that is asked again is another query; an abstaining chooser gives its best prompt.
    await call(agent, ask(CHOSEN), config)
    await call(agent, ask(OTHER), config)
    assert str(model.asked[-1][0].text) == f"{BEST}\n\nYou add."
    assert chooser.asked == retriever.queries == [CHOSEN, CHOSEN, OTHER]


@pytest.mark.parametrize("call", CALLS)
async def test_failed_choice_is_the_chooser_s_error_and_asks_no_model(call: Call) -> None:
    model = ScriptedAgentModel(script=say_yes)
    with pytest.raises(RewardModelError, match="cannot be embedded"):
        await call(make_agent(AlignmentMiddleware(FakeChooser()), model), ask(FORBIDDEN))
    assert not model.asked


@pytest.mark.parametrize("call", CALLS)
async def test_placeholders_of_a_slot_s_choice_are_filled(call: Call, tmp_path: Path) -> None:
    # One prompt has another placeholder, one is no template; the chooser does not tell them beforehand.
    table = {BRACES: "Explain to {user}; use {{braces}}.", CHOSEN: "Count, {who}.", OTHER: "Open {"}
    chooser = Silent("Be kind to {user}.", FakeChooser("Be kind to {user}.", prompt_by_query=table))
    slot = PromptSlot(
        tmp_path / "s.json", initial="Help {user}.", placeholders="format", open_router=lambda path: chooser
    )
    slot.swap(write_router(tmp_path / "r.npz"))
    model = ScriptedAgentModel(script=say_yes)
    agent = make_agent(AlignmentMiddleware(slot, values={"user": "{Ann}"}), model)
    for query, text in {BRACES: "Explain to {Ann}; use {braces}.", "Else?": "Be kind to {Ann}."}.items():
        await call(agent, ask(query))
        assert model.asked[-1][0].text == text
    for query, told in {CHOSEN: "'who'", OTHER: "cannot be read so"}.items():
        with pytest.raises(SettingsError, match=told):
            await call(agent, ask(query))
    assert len(model.asked) == 2


async def test_prompt_of_a_chooser_alone_has_no_placeholders() -> None:
    model = ScriptedAgentModel(script=say_yes)
    await make_agent(AlignmentMiddleware(FakeChooser(), values={"user": "Ann"}), model).ainvoke(ask(BRACES))
    assert model.asked[-1][0].text == PROMPT_BY_QUERY[BRACES]


async def test_swap_changes_the_chooser_at_the_next_request(tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="One.", open_router=RouterReader())
    model = ScriptedAgentModel(script=say_yes)
    agent = make_agent(AlignmentMiddleware(slot), model)
    # The same message all the time: what an earlier router chose for it is not what the next one does.
    message = {"messages": [HumanMessage(CHOSEN, id="same")]}
    first = write_router(tmp_path / "first.npz")
    second = write_router(tmp_path / "second.npz", prompt_by_query={CHOSEN: "Count aloud."})
    for given, text in ((None, "One."), (first, PROMPT_BY_QUERY[CHOSEN]), (second, "Count aloud."), ("Two.", "Two.")):
        if given is not None:
            # Another process's swap is seen likewise.
            PromptSlot(slot.path, open_router=RouterReader()).swap(given)
        await agent.ainvoke(message)
        assert model.asked[-1][0].text == text
    slot.roll_back()
    await agent.ainvoke(message)
    assert model.asked[-1][0].text == "Count aloud."


async def test_file_that_changed_under_a_slot_is_refused(tmp_path: Path) -> None:
    slot = PromptSlot(tmp_path / "s.json", initial="One.", open_router=RouterReader())
    path = write_router(tmp_path / "r.npz")
    slot.swap(path)
    agent = make_agent(AlignmentMiddleware(slot))
    await agent.ainvoke(ask(CHOSEN))
    write_router(path, best="Another one.")
    with pytest.raises(RewardModelError, match="has changed since it was put in use"):
        await agent.ainvoke(ask(CHOSEN))
    with pytest.raises(RewardModelError, match="has changed"):
        AlignmentMiddleware(slot)


@pytest.mark.parametrize("messages", [[], [AIMessage("Hm.")], [HumanMessage([{"type": "image_url", "image_url": {}}])]])
async def test_query_without_a_text_gets_the_best_single_prompt(messages: list[BaseMessage]) -> None:
    chooser, model = FakeChooser(), ScriptedAgentModel(script=say_yes)
    await make_agent(AlignmentMiddleware(chooser), model).ainvoke({"messages": messages})
    assert (model.asked[-1][0].text, chooser.asked) == (BEST, [])


async def test_failed_choice_is_tried_again() -> None:
    class Failing(FakeChooser):
        async def achoose(self, query: str) -> Any:
            if not self.asked:
                self.asked.append(query)
                raise RewardModelError("Not now.")
            return await super().achoose(query)

    agent = make_agent(AlignmentMiddleware(Failing()))
    message = {"messages": [HumanMessage(CHOSEN, id="same")]}
    with pytest.raises(RewardModelError):
        await agent.ainvoke(message)
    await agent.ainvoke(message)


async def test_concurrent_conversations_have_their_own_prompts() -> None:
    model = ScriptedAgentModel(script=say_yes)
    agent = make_agent(AlignmentMiddleware(FakeChooser()), model)
    queries = [CHOSEN, OTHER, BRACES] * 5
    await asyncio.gather(*(agent.ainvoke(ask(query)) for query in queries))
    assert len(model.asked) == len(queries)
    assert all(asked[0].text == PROMPT_BY_QUERY.get(str(asked[1].text), BEST) for asked in model.asked)


# Registry, and aligned models


async def test_registered_router_is_asked_and_replaced_while_serving(tmp_path: Path) -> None:
    registry, reader = PromptRegistry(tmp_path / "prompts"), RouterReader()
    model = ScriptedAgentModel(script=say_yes)
    agent = make_agent(AlignmentMiddleware(registry=registry, model="m", open_router=reader), model)
    registry.add(RegisteredPrompt(model="m", system_prompt="Fixed."))
    await agent.ainvoke(ask(CHOSEN))
    assert model.asked[-1][0].text == "Fixed."
    for table in (PROMPT_BY_QUERY, {CHOSEN: "Count aloud."}):
        router = write_router(tmp_path / "r.npz", prompt_by_query=table)
        registry.add_router(RegisteredPrompt(model="m", system_prompt=BEST), router)
        for _ in range(2):
            await agent.ainvoke(ask(CHOSEN))
            assert model.asked[-1][0].text == table[CHOSEN]
    assert len(reader.opened) == 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda body: Reply(["6"]), ServerOptions(log_bodies=True)) as server:
        yield server


@pytest.mark.parametrize("call", CALLS)
async def test_choice_is_handed_to_an_aligned_model_and_told(server: FakeServer, call: Call, tmp_path: Path) -> None:
    chooser = FakeChooser()
    own = FakeChooser(best_prompt="Its own.")
    slot = PromptSlot(tmp_path / "s.json", initial="One.", open_router=RouterReader())
    slot.swap(write_router(tmp_path / "r.npz"))
    for prompt, source in ((chooser, "router table"), (slot, "slot")):
        model = AlignedModel(model="openai:m", base_url=server.base_url, system_prompt=own)
        (*_, answer) = await call(make_agent(AlignmentMiddleware(prompt), model), ask(CHOSEN))
        sent = messages_of([entry["body"] for entry in server.log if entry["event"] == "start"][-1])
        assert sent is not None
        assert sent[0]["content"] == PROMPT_BY_QUERY[CHOSEN]
        assert answer.response_metadata["system_prompt_source"] == source
        assert answer.response_metadata["system_prompt_choice"]["name"] == "special"
    assert (chooser.asked, own.asked) == ([CHOSEN], [])


async def test_aligned_model_keeps_its_own_router_where_the_middleware_has_none(server: FakeServer) -> None:
    own = FakeChooser()
    model = AlignedModel(model="openai:m", base_url=server.base_url, system_prompt=own)
    await make_agent(AlignmentMiddleware(retriever=Retriever(), num_icl=1), model).ainvoke(ask(CHOSEN))
    assert own.asked == [CHOSEN]
