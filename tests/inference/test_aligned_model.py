"""An aligned model: asked as in the search, and usable wherever LangChain takes a model."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web
from langchain_core.caches import InMemoryCache
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import ModelCallError, ReplyError, SettingsError, UsageError
from drpo_graph.inference import AlignedModel
from drpo_graph.records import ICLExample
from drpo_graph.registry import GENERAL_PROMPT
from drpo_graph.search.assembly import build_context
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from tests.support.command import KEY
from tests.support.fake_server import FakeServer, FaultPlan, Reply, ServerOptions

PROMPT = "Answer in one line."
FORMS = ["chat", "flat"]
EXAMPLES = tuple(ICLExample(query=f"Example {place}?", response=f"Response {place}.") for place in range(6))


class FirstExamples:
    """Finds the first examples, whatever is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        self.asked.append((query, k))
        return EXAMPLES[:k]


def settings_for(form: str, **values: Any) -> Settings:
    base = {"endpoint": "completions"} if form == "flat" else {}
    return build_settings({"model": "openai:world", "base": base, "max_outage_s": 0, "retry_wait_s": 0.01, **values})


def aligned(form: str = "chat", **choices: Any) -> AlignedModel:
    given = {"model": "openai:world", "system_prompt": PROMPT, "settings": settings_for(form), **choices}
    return AlignedModel(**given)


def bodies(server: FakeServer) -> list[dict[str, Any]]:
    return [entry["body"] for entry in server.log if entry["event"] == "start"]


def without_stream(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}


# As the search asks


@pytest.mark.parametrize("form", FORMS)
async def test_request_is_the_search_s_byte_for_byte(server: FakeServer, form: str) -> None:
    context = replace(build_context(settings_for(form), store=InMemoryStore()), is_streamed=False)
    base = (await context.session("r")).models.base
    sample = await base.respond(base.response_format.render(system_prompt=PROMPT, query="What is rain?"))
    message = await aligned(form).ainvoke("What is rain?")
    searched, served = (entry["key"] for entry in server.log if entry["event"] == "start")
    assert served == searched
    assert message.content == sample.value == "You asked: What is rain?"


@pytest.mark.parametrize("form", FORMS)
async def test_examples_and_history_stand_where_the_renderer_puts_them(server: FakeServer, form: str) -> None:
    retriever = FirstExamples()
    model = aligned(form, retriever=retriever, num_icl=2)
    history: list[Any] = [("user", "Hello."), ("assistant", "Good day.")]
    await model.ainvoke({"query": "And now?", "history": history})
    context = replace(build_context(settings_for(form), store=InMemoryStore()), is_streamed=False)
    base = (await context.session("r")).models.base
    turns: list[Any] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    rendered = base.response_format.render(system_prompt=PROMPT, query="And now?", examples=EXAMPLES[:2], history=turns)
    await base.respond(rendered)
    served, searched = bodies(server)
    assert served == searched
    assert retriever.asked == [("And now?", 2)]


# Streaming


@pytest.mark.parametrize("form", FORMS)
async def test_stream_joins_to_what_invoke_returns(server: FakeServer, form: str) -> None:
    model = aligned(form)
    whole = await model.ainvoke("What is rain?")
    chunks = [chunk async for chunk in model.astream("What is rain?")]
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    assert "".join(str(chunk.text) for chunk in chunks) == whole.content
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    assert {**joined.response_metadata} == {**whole.response_metadata}
    invoked, streamed = bodies(server)
    assert without_stream(streamed) == without_stream(invoked)


async def test_stream_of_a_base_model_ends_at_the_next_heading(server: FakeServer) -> None:
    text = "".join([str(chunk.text) async for chunk in aligned("flat").astream("Why?")])
    assert text == "You asked: Why?"


async def test_stream_usage_is_the_server_s(server: FakeServer) -> None:
    model = aligned()
    whole = await model.ainvoke("What is rain?")
    usages = [chunk.usage_metadata async for chunk in model.astream("What is rain?") if chunk.usage_metadata]
    assert usages == [whole.usage_metadata]
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] > 0


async def test_stream_that_nobody_reads_on_ends(server: FakeServer) -> None:
    stream = aligned().astream("What is rain?")
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        # LangChain leaves the closing of what it iterates over to the event loop.
        while any("Ledger" in str(task.get_coro()) for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_failed_request_is_tried_again_before_the_first_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServerOptions(api_key=KEY, faults=FaultPlan(rate=1.0, kinds=["503"], max_per_request=1))
    async with FakeServer(lambda body: Reply(["Here it is."]), options) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert "".join([str(chunk.text) async for chunk in aligned().astream("Go.")]) == "Here it is."
        assert [entry["status"] for entry in server.finished] == [503, 200]


class BreakingModel(FakeListChatModel):
    """Breaks off after some pieces, each time it is asked."""

    num_pieces: int
    num_asked: int = 0

    async def _astream(self, *arguments: Any, **options: Any) -> AsyncIterator[ChatGenerationChunk]:
        self.num_asked += 1
        for _ in range(self.num_pieces):
            yield ChatGenerationChunk(message=AIMessageChunk(content="word "))
        raise ConnectionResetError("gone")


async def test_response_that_breaks_off_is_an_error_and_is_not_begun_anew() -> None:
    breaking = BreakingModel(responses=[""], num_pieces=2)
    shown: list[str] = []

    async def read() -> None:
        async for chunk in AlignedModel(model=breaking, settings=settings_for("chat")).astream("Go."):
            shown.append(str(chunk.text))

    with pytest.raises(ModelCallError, match="broke off"):
        await read()
    assert ("".join(shown), breaking.num_asked) == ("word word", 1)


async def test_request_that_fails_before_its_first_piece_is_tried_as_often_as_the_settings_say() -> None:
    breaking = BreakingModel(responses=[""], num_pieces=0)
    model = AlignedModel(model=breaking, settings=settings_for("chat", max_retries=2))
    with pytest.raises(ModelCallError, match="after 3 tries"):
        await anext(model.astream("Go."))
    assert breaking.num_asked == 3


async def test_key_that_the_server_says_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeServer(lambda body: Reply([f"Your key is {KEY}, see."]), ServerOptions(api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        streamed = "".join([str(chunk.text) async for chunk in aligned().astream("Go.")])
        assert streamed == (await aligned().ainvoke("Go.")).content
        assert KEY not in streamed


async def test_refusal_is_a_response_streamed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = Reply([""], refusals=["I will not help with that."])
    async with FakeServer(lambda body: reply, ServerOptions(api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert (await aligned().ainvoke("Go.")).content == "I will not help with that."
        assert "".join([str(chunk.text) async for chunk in aligned().astream("Go.")]) == "I will not help with that."


# The choices of a call


async def test_choices_can_be_made_for_the_model_for_a_call_and_by_bind(server: FakeServer) -> None:
    model = aligned(temperature=0.5, stop=("END",), retriever=FirstExamples())
    await model.ainvoke("a")
    await model.ainvoke("b", temperature=1.0, top_p=0.5, max_tokens=9, stop=["X"], system_prompt="Other.", num_icl=1)
    await model.bind(num_icl=2).with_config(tags=["t"]).ainvoke("c")
    first, second, third = bodies(server)
    assert (first["temperature"], first["stop"]) == (0.5, ["END"])
    assert (second["temperature"], second["top_p"], second["max_completion_tokens"]) == (1.0, 0.5, 9)
    assert (second["stop"], second["messages"][0]["content"], len(second["messages"])) == (["X"], "Other.", 4)
    assert len(third["messages"]) == 6


async def test_stop_that_is_a_text_is_one_stop(server: FakeServer) -> None:
    await aligned().ainvoke("a", stop="END")
    assert bodies(server)[0]["stop"] == ["END"]


async def test_no_cache_answers_for_other_examples(server: FakeServer) -> None:
    with pytest.raises(SettingsError, match="cache"):
        aligned(cache=InMemoryCache())

    class OneExample:
        def __init__(self, query: str) -> None:
            self.query = query

        async def retrieve(self, query: str, *, k: int) -> list[ICLExample]:
            return [ICLExample(query=self.query, response="r")]

    set_llm_cache(InMemoryCache())
    try:
        models = [
            aligned(retriever=OneExample(one), num_icl=1, cache=cache) for one, cache in (("A?", None), ("B?", False))
        ]
        messages = [await one.ainvoke("a") for one in models]
        assert [one.response_metadata["icl_queries"] for one in messages] == [["A?"], ["B?"]]
        # The model's own cache knows its request; what it tells without usage is read all the same.
        own = AlignedModel(model=FakeListChatModel(responses=["one", "two"]))
        assert [(await own.ainvoke("a")).content for _ in range(2)] == ["one", "one"]
    finally:
        set_llm_cache(None)


async def test_chat_model_has_its_own_name_whatever_the_settings_name() -> None:
    fake = FakeListChatModel(responses=["Fine."])
    named = AlignedModel(model=fake, settings=build_settings({"model": "openai:other"}))
    assert (await named.ainvoke("a")).response_metadata["model_name"] == "FakeListChatModel"


async def test_own_stops_of_a_base_model_come_before_the_format_s(server: FakeServer) -> None:
    await aligned("flat", stop=("END",)).ainvoke("a")
    assert bodies(server)[0]["stop"][0] == "END"
    assert "\n# Query\n" in bodies(server)[0]["stop"]


async def test_model_without_a_prompt_gets_the_general_one(server: FakeServer) -> None:
    message = await aligned(system_prompt=None).ainvoke("a")
    assert bodies(server)[0]["messages"][0]["content"] == GENERAL_PROMPT
    assert message.response_metadata["system_prompt_source"] == "general"


@dataclass(frozen=True)
class Prompt:
    """A registered prompt."""

    model: str
    system_prompt: str


class Prompts:
    """A registry that knows one model."""

    def find(self, model: str) -> Prompt | None:
        return Prompt(model, "Registered.") if model == "world" else None


@pytest.mark.parametrize(
    ("choices", "text", "source"),
    [
        ({"system_prompt": Prompt("m", "Given.")}, "Given.", "registry m"),
        ({"system_prompt": None, "registry": Prompts()}, "Registered.", "registry world"),
        ({"system_prompt": None, "registry": Prompts(), "model": "openai:other"}, GENERAL_PROMPT, "general"),
        ({"registry": Prompts()}, PROMPT, "own"),
    ],
)
async def test_prompt_is_the_given_one_else_the_registry_s_else_the_general_one(
    server: FakeServer, choices: dict[str, Any], text: str, source: str
) -> None:
    message = await aligned(**choices).ainvoke("a")
    assert bodies(server)[0]["messages"][0]["content"] == text
    assert message.response_metadata["system_prompt_source"] == source


async def test_system_message_of_the_application_follows_the_prompt(server: FakeServer) -> None:
    await aligned().ainvoke([SystemMessage("Today is Monday."), HumanMessage("What day is it?")])
    assert bodies(server)[0]["messages"][0]["content"] == f"{PROMPT}\n\nToday is Monday."


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"num_icl": 6}, "0 to 5"),
        ({"num_icl": 2}, "retriever"),
        ({"system_prompt": " "}, "blank"),
        ({"temperature": 9.0}, "temperature"),
        ({"tone": "kind"}, "tone"),
    ],
)
async def test_wrong_choice_is_told(server: FakeServer, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        await aligned().ainvoke("a", **choices)
    assert not server.log


@pytest.mark.parametrize(
    "given",
    [
        [],
        [AIMessage("x")],
        [ToolMessage("x", tool_call_id="1"), HumanMessage("x")],
        [HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])],
        {"question": "x"},
        {"query": 3},
    ],
)
async def test_input_that_is_no_conversation_is_told(server: FakeServer, given: Any) -> None:
    with pytest.raises(UsageError):
        await aligned().ainvoke(given)


async def test_sampling_of_a_model_that_is_not_asked_by_us_is_not_silently_dropped() -> None:
    fake = FakeListChatModel(responses=["Fine."])
    model = AlignedModel(model=fake, system_prompt=PROMPT)
    assert (await model.ainvoke("a")).content == "Fine."
    assert "".join([str(chunk.text) async for chunk in model.astream("a")]) == "Fine."
    with pytest.raises(SettingsError, match="temperature"):
        await model.ainvoke("a", temperature=0.5)


async def test_empty_response_and_wrong_key_are_errors_of_ours(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.responder = lambda body: Reply([" "])
    with pytest.raises(ReplyError, match="empty"):
        await aligned().ainvoke("a")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    with pytest.raises(ModelCallError, match="http_401"):
        await aligned(settings=settings_for("chat", probe=False)).ainvoke("a")


# Where LangChain takes a model


async def test_batch_keeps_the_order(server: FakeServer) -> None:
    messages = await aligned().abatch([str(place) for place in range(8)], {"max_concurrency": 3})
    assert [one.content for one in messages] == [f"You asked: {place}" for place in range(8)]


async def test_same_question_twice_is_two_calls(server: FakeServer) -> None:
    await aligned(temperature=1.0).abatch(["a", "a"])
    assert len(bodies(server)) == 2


async def test_synchronous_calls_work_on_other_threads_and_beside_a_loop(server: FakeServer) -> None:
    model = aligned()

    def use() -> list[str]:
        streamed = "".join(str(chunk.text) for chunk in model.stream("b"))
        return [str(model.invoke("a").text), streamed, *(str(one.text) for one in model.batch(["c", "d"]))]

    assert await asyncio.to_thread(use) == [f"You asked: {name}" for name in "abcd"]


class AskingRetriever:
    """Asks a model, which waits, on the thread that it waits for."""

    def __init__(self, model: AlignedModel) -> None:
        self._model = model

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        return [ICLExample(query=query, response=str(self._model.invoke(query).text))]


async def test_synchronous_call_inside_of_one_is_told_instead_of_waiting_for_ever(server: FakeServer) -> None:
    model = aligned(retriever=AskingRetriever(aligned()), num_icl=1)
    with pytest.raises(UsageError, match="asynchronous"):
        await asyncio.to_thread(model.invoke, "a")


async def test_settings_say_what_the_model_does_not(server: FakeServer) -> None:
    settings = build_settings({"base": {"model": "openai:other", "temperature": 0.25, "max_tokens": 5}})
    await aligned(settings=settings, max_tokens=6).ainvoke("a")
    (body,) = bodies(server)
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("world", 0.25, 6)


async def test_field_can_be_made_configurable(server: FakeServer) -> None:
    model = aligned().configurable_fields(temperature=ConfigurableField("warmth"))
    await model.with_config(configurable={"warmth": 0.75}).ainvoke("a")
    assert bodies(server)[0]["temperature"] == 0.75


async def test_error_in_a_stream_that_had_begun_is_tried_again_before_the_first_piece() -> None:
    told: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        told.append("")
        is_late = len(told) > 1
        part = {"choices": [{"index": 0, "delta": {"content": "Fine."}, "finish_reason": "stop"}]}
        line = part if is_late else {"error": {"message": "worker died"}}
        frame = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        text = f"data: {json.dumps({**frame, **line})}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        model = aligned(base_url=url, settings=settings_for("chat", probe=False))
        assert "".join([str(chunk.text) async for chunk in model.astream("Go.")]) == "Fine."
    finally:
        await runner.cleanup()
    assert len(told) == 2


async def test_it_stands_in_a_chain(server: FakeServer) -> None:
    template = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("user", "Say {word}.")])
    chain = template | aligned() | StrOutputParser()
    assert await chain.ainvoke({"word": "rain"}) == "You asked: Say rain."
    assert "".join([piece async for piece in chain.astream({"word": "rain"})]) == "You asked: Say rain."


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("keys", [{}, {"input_messages_key": "query", "history_messages_key": "history"}])
async def test_history_is_kept_by_langchain(server: FakeServer, keys: dict[str, str]) -> None:
    history = InMemoryChatMessageHistory()
    # LangChain notes what a model is given as messages; a dict's keys it finds in what a chain is given.
    model: Any = RunnablePassthrough() | aligned() if keys else aligned()
    chain = RunnableWithMessageHistory(model, lambda session_id: history, **keys)  # type: ignore[arg-type]
    config: Any = {"configurable": {"session_id": "s"}}
    for text in ("One?", "Two?"):
        await chain.ainvoke({"query": text} if keys else [HumanMessage(text)], config)
    asked = [(one["role"], one["content"]) for one in bodies(server)[1]["messages"][1:]]
    assert asked == [("user", "One?"), ("assistant", "You asked: One?"), ("user", "Two?")]
    assert len(history.messages) == 4


async def test_node_adds_its_response_to_the_messages_and_streams_its_tokens(server: FakeServer) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", aligned().as_node())  # type: ignore[arg-type]
    builder.add_edge(START, "answer")
    graph = builder.compile()
    given: Any = {"messages": [HumanMessage("One?"), AIMessage("Yes."), HumanMessage("Two?")]}
    state = await graph.ainvoke(given)
    assert [one.content for one in state["messages"]] == ["One?", "Yes.", "Two?", "You asked: Two?"]
    tokens: list[str] = []
    async for message, _ in graph.astream(given, stream_mode="messages"):
        tokens.append(str(message.text))  # type: ignore[union-attr]
    assert len(tokens) > 3
    assert "".join(tokens) == "You asked: Two?"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stop": 3}, r"^AlignedModel: stop: .*got 3"),
        ({"stop": ["a", 4]}, r"^AlignedModel: stop\.1: .*got 4"),
        ({"temperature": "warm"}, "^AlignedModel: temperature"),
        ({"num_icl": "many"}, "^AlignedModel: num_icl"),
        ({"tempratur": 1}, "^AlignedModel: tempratur: there is no such setting"),
    ],
)
def test_value_that_cannot_be_used_is_told_in_our_words(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        AlignedModel(model="vllm:m", **values)
    assert "pydantic" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_one_stop_may_be_given_as_a_text() -> None:
    assert AlignedModel(model="vllm:m", stop="END").stop == ("END",)  # type: ignore[arg-type]
