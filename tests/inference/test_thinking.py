"""Kinds of thinking in replies, on every surface that reads one: no role takes what a model only thought."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI

from drpo_graph.agents import AlignmentMiddleware
from drpo_graph.errors import ModelCallError, ReplyError
from drpo_graph.icl.nodes import parse_response
from drpo_graph.inference import AlignedModel
from drpo_graph.parts.parsing import parse_critique, parse_rewrite
from drpo_graph.records import Metric
from drpo_graph.settings.settings import Settings
from tests.support.command import KEY
from tests.support.fake_server import FakeServer, Reply
from tests.support.roles import QUESTION, open_desk

CLARITY = Metric(name="Clarity", definition="d")

Mark = Callable[[str, str], str]
"""Makes a reply of a thought and an answer."""

KINDS: dict[str, Mark] = {
    "think": lambda thought, answer: f"<think>{thought}</think>\n\n{answer}",
    "thinking": lambda thought, answer: f"<thinking>\n{thought}\n</thinking>\n{answer}",
    "reasoning": lambda thought, answer: f"<reasoning>{thought}</reasoning>{answer}",
    "brackets": lambda thought, answer: f"[THINK]{thought}[/THINK]{answer}",
    "no opening tag": lambda thought, answer: f"{thought}\n</think>\n\n{answer}",
    "channels": lambda thought, answer: (
        f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}"
    ),
}


def form(role: str, word: str) -> str:
    """Return what a role's model says of a word."""
    if role == "critic":
        return json.dumps({"Clarity": {"rationale": word, "score": 5 if word == "draft" else 2}})
    if role in ("optimizer", "icl"):
        return json.dumps({"new_system_prompt" if role == "optimizer" else "new_response": f"The {word}."})
    return f"The {word}."


def aligned(base_url: str) -> AlignedModel:
    settings = Settings(max_outage_s=0, probe=False, retry_wait_s=0.01)
    return AlignedModel(model="openai:world", system_prompt="Be brief.", base_url=base_url, settings=settings)


async def ask(role: str, base_url: str) -> object:
    """Return what one surface makes of the server's replies; nothing where it has no use for them."""
    if role in ("critic", "optimizer", "icl"):
        parsers: dict[str, Callable[[str], object]] = {
            "critic": partial(parse_critique, metrics=[CLARITY]),
            "optimizer": parse_rewrite,
            "icl": parse_response,
        }
        desk = await open_desk(base_url)
        samples = await desk.models.optimizer.ask(QUESTION, parse=parsers[role])
        found = samples[0].value
        return getattr(found, "reward", found)
    if role == "base":
        return (await (await open_desk(base_url)).models.base.respond(QUESTION)).value
    try:
        if role == "aligned":
            return (await aligned(base_url).ainvoke("What?")).content
        if role == "stream":
            return "".join([str(one.text) async for one in aligned(base_url).astream("What?")])
    except ReplyError:
        return None
    model = ChatOpenAI(model="world", base_url=base_url, api_key=KEY)
    middleware: Any = AlignmentMiddleware("Be brief.")
    state = await create_agent(model, tools=[], middleware=[middleware]).ainvoke({"messages": [("user", "What?")]})
    assert "draft" not in state["messages"][-1].content
    return state["messages"][-1].content or None


SURFACES = ["critic", "optimizer", "icl", "base", "aligned", "stream", "middleware"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", SURFACES)
async def test_every_surface_takes_the_answer_and_not_the_draft(role: str, kind: str) -> None:
    reply = KINDS[kind](f"Perhaps {form(role, 'draft')} would do.", form(role, "answer"))
    async with FakeServer(lambda body: Reply([reply])) as server:
        if role == "stream" and kind == "no opening tag":
            # Nothing says so before it is over: known from then on.
            model = aligned(server.base_url)
            with pytest.raises(ModelCallError, match="its thinking, which no tag had opened"):
                [one async for one in model.astream("What?")]
            assert "".join([str(one.text) async for one in model.astream("What?")]) == "The answer."
            return
        assert await ask(role, server.base_url) == (2 if role == "critic" else "The answer.")


@pytest.mark.parametrize("reason", ["length", "stop"])
@pytest.mark.parametrize("kind", [one for one in KINDS if one != "no opening tag"])
@pytest.mark.parametrize("role", SURFACES)
async def test_unfinished_thinking_is_no_answer_on_any_surface(role: str, kind: str, reason: str) -> None:
    reply = KINDS[kind](f"Perhaps {form(role, 'draft')} would do.", "@").partition("would do.")[0]
    async with FakeServer(lambda body: Reply([reply], finish_reasons=[reason])) as server:
        assert await ask(role, server.base_url) is None


@pytest.mark.parametrize("role", ["critic", "optimizer", "icl"])
async def test_what_looks_whole_in_a_reply_that_was_cut_is_asked_for_again(role: str) -> None:
    texts = iter([f"Perhaps {form(role, 'draft')} but th", form(role, "answer")])
    reasons = iter(["length", "stop"])
    async with FakeServer(lambda body: Reply([next(texts)], finish_reasons=[next(reasons)])) as server:
        assert await ask(role, server.base_url) == (2 if role == "critic" else "The answer.")


@pytest.mark.parametrize("kind", KINDS)
async def test_rewrite_that_mentions_a_tag_is_good(kind: str) -> None:
    prompt = "Think between <reasoning> and </reasoning>, then answer."
    answer = json.dumps({"new_system_prompt": prompt})
    for reply in (answer, KINDS[kind]("Hm.", answer)):
        async with FakeServer(lambda body, reply=reply: Reply([reply])) as server:
            assert await ask("optimizer", server.base_url) == prompt


async def test_repair_shows_the_answer_without_its_thinking() -> None:
    bodies: list[Any] = []

    def respond(body: dict[str, object]) -> Reply:
        bodies.append(body)
        return Reply(["<think>Hm.</think>No."] if len(bodies) < 3 else [form("optimizer", "answer")])

    async with FakeServer(respond) as server:
        assert await ask("optimizer", server.base_url) == "The answer."
    assert bodies[-1]["messages"][-2] == {"role": "assistant", "content": "No."}


async def test_history_is_sent_without_its_thinking() -> None:
    bodies: list[Any] = []

    def respond(body: dict[str, object]) -> Reply:
        bodies.append(body)
        return Reply(["Yes."])

    parts: list[Any] = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "One."}]
    turns = [HumanMessage("1?"), AIMessage(parts), HumanMessage("2?"), AIMessage("<think>Hm.</think>\nTwo.")]
    async with FakeServer(respond) as server:
        await aligned(server.base_url).ainvoke([*turns, HumanMessage("3?")])
    assert [one["content"] for one in bodies[0]["messages"] if one["role"] == "assistant"] == ["One.", "Two."]


async def test_middleware_keeps_the_thinking_beside_the_answer() -> None:
    async with FakeServer(lambda body: Reply(["<think>Hm.</think>\nYes."])) as server:
        model = ChatOpenAI(model="world", base_url=server.base_url, api_key=KEY)
        middleware: Any = AlignmentMiddleware("Be brief.")
        agent: Any = create_agent(model, tools=[], middleware=[middleware])
        message = (await agent.ainvoke({"messages": [("user", "What?")]}))["messages"][-1]
    assert (message.content, message.additional_kwargs["reasoning_content"]) == ("Yes.", "<think>Hm.</think>")
