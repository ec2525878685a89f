"""An aligned model whose prompt is chosen for each query, however it is called."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import RewardModelError, SettingsError, UsageError
from drpo_graph.inference import AlignedModel, ChosenPrompt
from drpo_graph.parts.choosers import PromptChoice
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from drpo_graph.search.assembly import build_context
from tests.inference.conftest import say
from tests.inference.test_aligned_model import FORMS, PROMPT, FirstExamples, aligned, bodies, settings_for
from tests.support.choosers import BEST, FORBIDDEN, PROMPT_BY_QUERY, FakeChooser, RouterReader, write_router
from tests.support.command import KEY, serve
from tests.support.fake_server import FakeServer, ServerOptions

CHOSEN = "3 + 3?"
BRACES = "What is rain?"
OTHER = "Why?"


async def _astream(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    first, *others = [one async for one in model.astream(given, **choices) if isinstance(one, AIMessageChunk)]
    return first + others


async def _stream(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    first, *others = [one for one in model.stream(given, **choices) if isinstance(one, AIMessageChunk)]
    return first + others


async def _invoke(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    # In a running loop, as in a notebook.
    return model.invoke(given, **choices)


async def _in_thread(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    return await asyncio.to_thread(model.invoke, given, **choices)


async def _ainvoke(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    return await model.ainvoke(given, **choices)


async def _batch(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    return model.batch([given], **choices)[0]


async def _abatch(model: AlignedModel, given: Any, **choices: Any) -> AIMessage:
    return (await model.abatch([given], **choices))[0]


Call = Callable[..., Awaitable[AIMessage]]
CALLS = [_invoke, _in_thread, _ainvoke, _stream, _astream, _batch, _abatch]


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server beside the test's loop, which the synchronous calls hold up."""
    with serve(say, ServerOptions(api_key=KEY, log_bodies=True)) as running:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


def system_of(server: FakeServer) -> str:
    content: str = bodies(server)[-1]["messages"][0]["content"]
    return content


@pytest.mark.parametrize("is_per_call", [False, True])
@pytest.mark.parametrize("call", CALLS)
async def test_prompt_is_the_chooser_s_and_the_response_tells_of_it(
    server: FakeServer, call: Call, is_per_call: bool
) -> None:
    chooser = FakeChooser()
    model = aligned(system_prompt=PROMPT if is_per_call else chooser)
    choices = {"system_prompt": chooser} if is_per_call else {}
    for query, prompt in {**PROMPT_BY_QUERY, OTHER: BEST}.items():
        message = await call(model, query, **choices)
        assert message.content == f"You asked: {query}"
        # Braces are what they are: nobody says that they are placeholders.
        assert system_of(server) == prompt
        told = message.response_metadata
        assert told["system_prompt_source"] == "router table"
        choice = told["system_prompt_choice"]
        name, reward = ("best", 0.5) if query == OTHER else ("special", 0.75)
        assert (choice["name"], choice["reward"], choice["has_abstained"]) == (name, reward, query == OTHER)
        assert "prompt" not in choice
    assert chooser.asked == [*PROMPT_BY_QUERY, OTHER]


@pytest.mark.parametrize("call", CALLS)
async def test_failed_choice_is_the_chooser_s_error_and_asks_nothing(server: FakeServer, call: Call) -> None:
    with pytest.raises(RewardModelError, match="cannot be embedded"):
        await call(aligned(system_prompt=FakeChooser()), FORBIDDEN)
    assert not server.log


@pytest.mark.parametrize("form", FORMS)
async def test_request_is_that_of_the_chosen_prompt_byte_for_byte(server: FakeServer, form: str) -> None:
    context = replace(build_context(settings_for(form), store=InMemoryStore()), is_streamed=False)
    base = (await context.session("r")).models.base
    await base.respond(base.response_format.render(system_prompt=PROMPT_BY_QUERY[CHOSEN], query=CHOSEN))
    await aligned(form, system_prompt=FakeChooser()).ainvoke(CHOSEN)
    searched, served = (entry["key"] for entry in server.log if entry["event"] == "start")
    assert served == searched


async def test_each_of_a_batch_has_its_own_prompt(server: FakeServer) -> None:
    queries = [CHOSEN, OTHER, BRACES, CHOSEN]
    messages = await aligned(system_prompt=FakeChooser()).abatch(queries)
    assert [one.response_metadata["system_prompt_choice"]["has_abstained"] for one in messages] == [
        query == OTHER for query in queries
    ]
    sent = {one["messages"][-1]["content"]: one["messages"][0]["content"] for one in bodies(server)}
    assert sent == {query: PROMPT_BY_QUERY.get(query, BEST) for query in queries}


@pytest.mark.parametrize(
    "given",
    [
        {"query": CHOSEN, "history": [("user", OTHER), ("assistant", "So.")]},
        {"messages": [("user", OTHER), ("assistant", "So."), ("user", CHOSEN)]},
        [HumanMessage(OTHER), AIMessage("So."), SystemMessage("Today is Monday."), HumanMessage(CHOSEN)],
    ],
)
async def test_last_message_of_the_user_decides(server: FakeServer, given: Any) -> None:
    chooser = FakeChooser()
    retriever = FirstExamples()
    await aligned(system_prompt=chooser, retriever=retriever, num_icl=1).ainvoke(given)
    assert chooser.asked == [CHOSEN]
    assert retriever.asked == [(CHOSEN, 1)]
    assert system_of(server).partition("\n\n")[0] == PROMPT_BY_QUERY[CHOSEN]


async def test_query_without_a_text_gets_the_best_single_prompt(server: FakeServer) -> None:
    chooser = FakeChooser()
    message = await aligned(system_prompt=chooser).ainvoke([HumanMessage(" ")])
    assert (system_of(server), chooser.asked) == (BEST, [])
    assert message.response_metadata["system_prompt_choice"]["has_abstained"]


async def test_there_is_no_one_prompt_to_tell() -> None:
    model = aligned(system_prompt=FakeChooser())
    with pytest.raises(UsageError, match=r"router table.*achoose_prompt"):
        _ = model.chosen_prompt
    assert model._identifying_params["system_prompt"] == "router table"
    found = await model.achoose_prompt(CHOSEN)
    assert (found.text, found.source) == (PROMPT_BY_QUERY[CHOSEN], "router table")
    assert await aligned().achoose_prompt(CHOSEN) == aligned().chosen_prompt == ChosenPrompt(PROMPT, "own")


async def test_prompt_that_was_chosen_is_not_chosen_twice(server: FakeServer) -> None:
    chooser = FakeChooser()
    model = aligned(system_prompt=chooser)
    found = await model.achoose_prompt(CHOSEN)
    message = await model.ainvoke(OTHER, system_prompt=found)
    assert (system_of(server), chooser.asked) == (found.text, [CHOSEN])
    assert message.response_metadata["system_prompt_choice"]["name"] == "special"


async def test_bound_chooser_traces_and_stays(server: FakeServer) -> None:
    chooser = FakeChooser()
    bound = aligned().bind(system_prompt=chooser)
    await bound.ainvoke(CHOSEN)
    assert system_of(server) == PROMPT_BY_QUERY[CHOSEN]
    events = [one["event"] async for one in bound.astream_events(OTHER, version="v2")]
    assert {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"} <= set(events)
    assert system_of(server) == BEST


async def test_fixed_prompt_tells_of_no_choice(server: FakeServer) -> None:
    message = await aligned().ainvoke(CHOSEN)
    assert "system_prompt_choice" not in message.response_metadata


async def test_blank_choice_is_told(server: FakeServer) -> None:
    with pytest.raises(RewardModelError, match=r"router table.*a blank one was chosen"):
        await aligned(system_prompt=FakeChooser(prompt_by_query={OTHER: " "})).ainvoke(OTHER)
    assert not server.log


async def test_half_a_character_in_a_choice_does_no_harm(server: FakeServer) -> None:
    await aligned(system_prompt=FakeChooser(prompt_by_query={OTHER: "Be \udcff."})).ainvoke(OTHER)
    assert system_of(server) == "Be \N{REPLACEMENT CHARACTER}."


async def test_chooser_without_a_name_is_called_by_its_kind(server: FakeServer) -> None:
    class Plain:
        async def achoose(self, query: str) -> PromptChoice:
            return PromptChoice(prompt="Be plain.")

    message = await aligned(system_prompt=Plain()).ainvoke(OTHER)
    assert message.response_metadata["system_prompt_source"] == "router Plain"
    assert message.response_metadata["system_prompt_choice"]["reward"] is None


# Routers of a registry


@pytest.fixture
def registry(tmp_path: Path) -> PromptRegistry:
    registry = PromptRegistry(tmp_path / "prompts")
    router = write_router(tmp_path / "made.npz")
    registry.add_router(RegisteredPrompt(model="openai:world", system_prompt=BEST), router)
    router.unlink()
    return registry


@pytest.mark.parametrize("call", CALLS)
async def test_registered_router_chooses_for_its_model(
    server: FakeServer, registry: PromptRegistry, call: Call
) -> None:
    reader = RouterReader()
    model = aligned(system_prompt=None, registry=registry, open_router=reader)
    for query in (CHOSEN, OTHER):
        message = await call(model, query)
        assert system_of(server) == PROMPT_BY_QUERY.get(query, BEST)
        assert message.response_metadata["system_prompt_source"] == "registry openai:world"
    assert [len(reader.opened), *reader.asked] == [1, CHOSEN, OTHER]


async def test_registered_prompt_that_is_given_has_its_router_where_the_registry_is_known(
    server: FakeServer, registry: PromptRegistry
) -> None:
    found = registry.require("openai:world")
    reader = RouterReader()
    for choices, text in (({"registry": registry}, PROMPT_BY_QUERY[CHOSEN]), ({}, BEST)):
        await aligned(system_prompt=found, open_router=reader, **choices).ainvoke(CHOSEN)
        assert system_of(server) == text
        await aligned(open_router=reader, **choices).ainvoke(CHOSEN, system_prompt=found)
        assert system_of(server) == text


def test_registered_router_that_cannot_be_read_is_told_when_the_model_is_made(registry: PromptRegistry) -> None:
    (file,) = (registry.folder / "routers").iterdir()
    file.write_text("{")
    with pytest.raises(RewardModelError, match="it is none"):
        aligned(system_prompt=None, registry=registry, open_router=RouterReader())
    file.unlink()
    with pytest.raises(UsageError, match="Register the router again"):
        aligned(system_prompt=None, registry=registry, open_router=RouterReader())


async def test_concurrent_first_calls_read_a_router_once(server: FakeServer, tmp_path: Path) -> None:
    from drpo_graph.inference.routers import RouterFile

    reader, gate = RouterReader(), threading.Barrier(4)
    file = RouterFile(write_router(tmp_path / "r.npz"), open_router=reader)

    def ask() -> None:
        gate.wait(10)
        asyncio.run(file.achoose(OTHER))

    await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4)))
    assert [len(reader.opened), len(reader.asked)] == [1, 4]


def test_what_chooses_nothing_is_no_prompt() -> None:
    with pytest.raises((SettingsError, ValueError)):
        aligned(system_prompt=object())
