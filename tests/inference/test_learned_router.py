"""A router that was learned and saved serves wherever a prompt does."""

import asyncio
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain.agents import create_agent

from drpo_graph.agents import AlignmentMiddleware, PromptSlot
from drpo_graph.errors import RewardModelError
from drpo_graph.inference import AlignedModel, load_router
from drpo_graph.oirl import Demonstration, Demonstrations, PromptRouter, TrainingSettings, train_router
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from drpo_graph.retrieval import make_embeddings
from tests.inference.conftest import say
from tests.inference.test_aligned_model import aligned, bodies
from tests.support.command import KEY, Drpo, serve
from tests.support.embeddings import EmbeddingsServer, serve_embeddings_beside
from tests.support.fake_server import FakeServer, ServerOptions

SHORT, LONG = "Be brief.", "Go step by step."
BEST_FOR = {"How much is 7?": SHORT, "Tell of 7.": LONG}


def embed(texts: list[str]) -> web.Response:
    """Tell questions from orders."""
    entries = [
        {"object": "embedding", "index": place, "embedding": [float("?" in one), float("?" not in one), 0.1]}
        for place, one in enumerate(texts)
    ]
    return web.json_response({"object": "list", "data": entries, "model": "e", "usage": {}})


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingsServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve_embeddings_beside() as running:
        running.answer = embed
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def server(embedder: EmbeddingsServer) -> Iterator[FakeServer]:
    with serve(say, ServerOptions(api_key=KEY, log_bodies=True)) as running:
        yield running


async def learn(path: Path, *, is_clear: bool) -> PromptRouter:
    """Save a router for two kinds of queries, with a clear difference between them or with none."""
    rows = []
    for number in range(40):
        for query, good in ((f"How much is {number}?", SHORT), (f"Tell of {number}.", LONG)):
            best = good if is_clear else SHORT
            rows += [Demonstration(query, one, float(one == best), "m") for one in (SHORT, LONG)]
    embeddings = make_embeddings("openai:e")
    settings = TrainingSettings(reward_model="neighbours")
    table = Demonstrations.from_rows(rows)
    router = await train_router(table, settings=settings, embeddings=embeddings, embeddings_name="openai:e")
    await asyncio.to_thread(router.save, path)
    return router


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("is_clear", [False, True])
async def test_aligned_model_asks_with_the_learned_choice(
    server: FakeServer, tmp_path: Path, is_clear: bool, is_saved: bool
) -> None:
    router: Any = await learn(tmp_path / "r.npz", is_clear=is_clear)
    if is_saved:
        router = load_router(tmp_path / "r.npz")
    model = aligned(system_prompt=router, base_url=server.base_url)
    # On this loop, on that of the synchronous calls, and on this one again.
    for call in (model.ainvoke, functools.partial(asyncio.to_thread, model.invoke), model.ainvoke):
        for query, best in BEST_FOR.items():
            message = await call(query)
            assert bodies(server)[-1]["messages"][0]["content"] == (best if is_clear else SHORT)
            assert message.response_metadata["system_prompt_choice"]["has_abstained"] is not is_clear
    messages = model.batch([*BEST_FOR] * 3)
    assert len({one.response_metadata["system_prompt_choice"]["name"] for one in messages}) == 1 + is_clear


async def test_slot_and_registry_serve_a_learned_router(server: FakeServer, tmp_path: Path) -> None:
    await learn(tmp_path / "r.npz", is_clear=True)
    slot = PromptSlot(tmp_path / "s.json", initial="Help.")
    registry = PromptRegistry(tmp_path / "prompts")
    made = slot.swap(tmp_path / "r.npz")
    registry.add_router(RegisteredPrompt(model="openai:world", system_prompt=made.text), tmp_path / "r.npz")
    middleware: Any = AlignmentMiddleware(slot)
    plain = AlignedModel(model="openai:world", base_url=server.base_url)
    agent: Any = create_agent(plain, middleware=[middleware])
    kept = AlignedModel(model="openai:world", base_url=server.base_url, registry=registry)
    for query, best in BEST_FOR.items():
        for call in (agent.ainvoke, functools.partial(asyncio.to_thread, agent.invoke)):
            await call({"messages": [("user", query)]})
            assert bodies(server)[-1]["messages"][0]["content"] == best
        await kept.ainvoke(query)
        assert bodies(server)[-1]["messages"][0]["content"] == best
    (tmp_path / "r.npz").write_bytes(b"damaged")
    with pytest.raises(RewardModelError, match="has changed since it was put in use"):
        await agent.ainvoke({"messages": [("user", "How much is 7?")]})


@pytest.mark.parametrize("query", list(BEST_FOR))
def test_command_answers_with_a_learned_router(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], query: str
) -> None:
    asyncio.run(learn(tmp_path / "r.npz", is_clear=True))
    drpo = Drpo(capsys)
    place = ("--model", "openai:world", "--base-url", server.base_url)
    told = json.loads(drpo("generate", query, *place, "--router", tmp_path / "r.npz", "--json").out)
    assert told["system_prompt"] == BEST_FOR[query]
    assert told["system_prompt_source"] == "router r"
    assert 0.5 < told["system_prompt_choice"]["reward"] <= 1
    assert drpo("generate", query, *place, "--router", tmp_path / "r.npz").out.startswith("You asked: ")


def test_command_tells_what_is_no_router(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04")
    done = Drpo(capsys)("generate", "x", "--model", "openai:world", "--router", tmp_path / "r.npz")
    assert (done.code, len(done.err_lines)) == (2, 1)
    assert "r.npz" in done.err
