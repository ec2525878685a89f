"""Runs with models that refuse fields: learnt from the first refusal, kept with the run, told once."""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langgraph.store.memory import InMemoryStore
from pydantic import SecretStr

from drpo_graph.errors import ModelCallError
from drpo_graph.events.schema import Warned
from drpo_graph.inference import AlignedModel
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.roles import QUESTION, SCORE_SCHEMA, Desk, answer, open_desk, parse_answer

GPT_5 = ["max_tokens", "temperature", "top_p", "stop"]
EACH = ["max_completion_tokens", "temperature", "top_p", "stop", "seed", "n"]
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def say_four(body: dict[str, object]) -> Reply:
    said = answer(4) if "response_format" in body else Reply(["Good day. END And more."])
    return Reply([text.partition("END")[0] for text in said.texts]) if body.get("stop") else said


async def ask(desk: Desk) -> None:
    """Ask once in each way that a search asks."""
    critic = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA, seed=7)
    optimizer = await desk.models.optimizer.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA, num_samples=2)
    base = await desk.models.base.respond(HELLO)  # type: ignore[arg-type]
    assert [one.value for one in (*critic, *optimizer, base)] == [4, 4, 4, "Good day."]


def warnings(desk: Desk) -> list[str]:
    return [event.message for event in desk.events if isinstance(event, Warned)]


def refused(server: FakeServer) -> int:
    return sum(entry["status"] >= 400 for entry in server.finished)


def last_body(server: FakeServer) -> dict[str, Any]:
    return server.finished[-1]["body"]


@pytest.mark.parametrize(
    ("refuses", "like"),
    [
        *itertools.product([*([one] for one in EACH), EACH, GPT_5], ["openai", "anthropic", "mistral", "words"]),
        *(pytest.param(list(two), "openai", marks=pytest.mark.slow) for two in itertools.combinations(EACH, 2)),
    ],
)
async def test_search_goes_on_without_the_fields_that_a_model_refuses(refuses: Sequence[str], like: Any) -> None:
    options = ServerOptions(refuses=refuses, refuses_like=like, log_bodies=True)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, role={"stop": ["END"]})
        await ask(desk)
        sent = [name for name in refuses if name != "max_tokens"]
        assert refused(server) == len(sent)
        assert len(warnings(desk)) == len(sent)
        assert not set(refuses) & set(last_body(server))
        assert {"max_tokens", "max_completion_tokens"} & set(last_body(server))
        # They are told and learnt once, whatever the role.
        assert len(desk.retries) == 0


async def test_either_of_two_that_exclude_each_other_is_left() -> None:
    options = ServerOptions(refuses=["temperature+top_p"], refuses_like="anthropic", log_bodies=True)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, role={"stop": ["END"]})
        await ask(desk)
        assert refused(server) == 1
        assert "temperature" in last_body(server)
        assert "top_p" not in last_body(server)


async def test_what_was_learnt_is_kept_with_the_run_and_is_no_part_of_its_fingerprint() -> None:
    store = InMemoryStore()
    async with FakeServer(say_four, ServerOptions(refuses=EACH, log_bodies=True)) as server:
        first = await open_desk(server.base_url, store=store, role={"stop": ["END"]})
        await ask(first)
        num_refused = refused(server)
        again = await open_desk(server.base_url, store=store, role={"stop": ["END"]})
        await ask(again)  # From the ledger: the keys say what is asked, not on which terms.
        assert len(server.finished) == num_refused + 4
        assert again.context.fingerprints() == first.context.fingerprints()
        await again.models.metrics.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA)
        assert refused(server) == num_refused
        assert not warnings(again)


async def test_probe_tells_the_run_what_is_refused() -> None:
    options = ServerOptions(refuses=["max_completion_tokens"], refuses_like="mistral", log_bodies=True)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, probe=True, role={"stop": ["END"]})
        await ask(desk)
        assert refused(server) == 0


async def test_field_that_is_refused_under_both_names_ends_the_run_with_the_reason() -> None:
    async with FakeServer(say_four, ServerOptions(refuses=["max_tokens", "max_completion_tokens"])) as server:
        desk = await open_desk(server.base_url)
        with pytest.raises(ModelCallError, match="'max_tokens' is not supported"):
            await ask(desk)


async def test_fields_that_are_unset_are_not_sent_and_effort_is() -> None:
    role: dict[str, Any] = {"temperature": "none", "top_p": "none", "reasoning_effort": "low", "stop": ["END"]}
    async with FakeServer(say_four, ServerOptions(log_bodies=True)) as server:
        desk = await open_desk(server.base_url, role=role)
        await ask(desk)
        for entry in server.finished:
            assert not {"temperature", "top_p"} & set(entry["body"])
            assert entry["body"]["reasoning_effort"] == "low"


def test_effort_is_left_out_of_the_fingerprint_where_it_is_not_set() -> None:
    assert "reasoning_effort" not in json.dumps(build_settings({}).fingerprint_fields())
    settings = build_settings({"critic": {"reasoning_effort": "high", "temperature": "none"}})
    assert settings.fingerprint_fields()["critic"]["reasoning_effort"] == "high"  # type: ignore[index,call-overload]
    assert settings.critic.temperature is None
    assert (settings.base.temperature, settings.optimizer.temperature) == (0.0, 0.7)


async def test_reasoning_is_counted_and_told_where_it_leaves_no_room_for_a_reply() -> None:
    options = ServerOptions(num_reasoning_tokens=500)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, role={"stop": ["END"]})
        await ask(desk)
        assert desk.ledger.total_usage().reasoning_tokens == 500 * 3
        assert not warnings(desk)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, role={"max_tokens": 200, "stop": ["END"]})
        for seed in (1, 2):
            (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA, seed=seed)
            assert sample.failure is not None
            assert sample.failure.kind == "truncated"
            assert "reasoning took all of its tokens" in sample.failure.detail
        (told,) = warnings(desk)
        assert "Raise critic.max_tokens, or lower critic.reasoning_effort" in told


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
async def test_aligned_model_answers_without_the_fields_that_a_model_refuses(
    is_given: bool, is_streamed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-of-yours")
    settings = build_settings({"probe": False, "max_outage_s": 0})
    refuses = [one for one in EACH if one != "max_completion_tokens"] if is_given else EACH
    async with FakeServer(say_four, ServerOptions(refuses=refuses, log_bodies=True)) as server:
        url = server.base_url
        own = ChatOpenAI(model="m", base_url=url, api_key=SecretStr("sk-x"), temperature=0.3, top_p=0.5, seed=4)
        place = {"model": own} if is_given else {"model": "openai:m", "base_url": url}
        aligned = AlignedModel(settings=settings, system_prompt="Be kind.", stop=("END",), **place)  # type: ignore[arg-type]
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                if is_streamed:
                    text = "".join([str(chunk.text) async for chunk in aligned.astream("Hello")])
                else:
                    text = str((await aligned.ainvoke("Hello")).text)
                assert text.strip() == "Good day."
        assert 1 <= refused(server) <= len(refuses)
        # Other clients, which the interpreter clears away meanwhile, log what they please.
        own_lines = [one for one in caplog.records if one.name.startswith("drpo_graph")]
        assert len(own_lines) == refused(server)
        assert not set(refuses) & set(last_body(server))
