"""LangChain's own clients of Anthropic and Mistral against servers that refuse fields in these providers' words."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel

from drpo_graph.inference import AlignedModel
from drpo_graph.settings.layers import build_settings
from tests.support.command import KEY
from tests.support.fake_anthropic import FakeAnthropic
from tests.support.fake_server import FakeServer, Reply, ServerOptions
from tests.support.roles import QUESTION, SCORE_SCHEMA, answer, open_desk, parse_answer

pytest.importorskip("langchain_anthropic")
pytest.importorskip("langchain_mistralai")

# They bring 70 MB that nothing else here needs: `make test-slow` installs them.
pytestmark = pytest.mark.slow

CLAUDE, MISTRAL = "anthropic:claude-haiku-4-5", "mistralai:mistral-small-latest"
REFUSALS: Sequence[tuple[str, list[str], str]] = [
    (CLAUDE, ["temperature+top_p"], "top_p"),
    (CLAUDE, ["temperature"], "temperature"),
    (CLAUDE, ["output_config"], "reasoning_effort"),
    # The client itself refuses; nothing is sent before.
    ("anthropic:claude-sonnet-5-5", ["temperature"], "temperature"),
    (MISTRAL, ["temperature"], "temperature"),
    (MISTRAL, ["top_p"], "top_p"),
    (MISTRAL, ["stop"], "stop"),
    (MISTRAL, ["reasoning_effort"], "reasoning_effort"),
]
SENT_AS = {"reasoning_effort": "output_config"}
"""What Anthropic's client makes of a field."""


def say_good_day(body: dict[str, object]) -> Reply:
    said = answer(4) if "How good" in str(body["messages"]) else Reply(["Good day. END And more."])
    return Reply([text.partition("END")[0] for text in said.texts]) if body.get("stop") else said


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("ANTHROPIC_API_KEY", "MISTRAL_API_KEY"):
        monkeypatch.setenv(name, KEY)


@asynccontextmanager
async def serve(model: str, patch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[FakeServer | FakeAnthropic]:
    """Run the provider's server, where its client looks for it."""
    is_claude = model.startswith("anthropic")
    kind, like = (FakeAnthropic, "anthropic") if is_claude else (FakeServer, "mistral")
    async with kind(say_good_day, ServerOptions(refuses_like=like, log_bodies=True, **options)) as server:
        patch.setenv("ANTHROPIC_BASE_URL" if is_claude else "MISTRAL_BASE_URL", server.base_url)
        yield server


def make_instance(model: str) -> BaseChatModel:
    """Return a caller's own client, with all that it may send."""
    from langchain.chat_models import init_chat_model

    made: BaseChatModel = init_chat_model(
        model, temperature=0.2, top_p=1.0, max_tokens=100, max_retries=0, reasoning_effort="low"
    )
    return made


def bodies(server: FakeServer | FakeAnthropic) -> list[tuple[int, dict[str, Any]]]:
    return [(entry["status"], entry["body"]) for entry in server.finished]  # type: ignore[typeddict-item]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_instance", [False, True])
@pytest.mark.parametrize(("model", "refuses", "left_out"), REFUSALS)
async def test_refused_field_is_left_out_after_one_refusal(
    model: str,
    refuses: list[str],
    left_out: str,
    is_instance: bool,
    is_streamed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = build_settings({"probe": False, "base": {"reasoning_effort": "low"}})
    async with serve(model, monkeypatch, refuses=refuses) as server:
        given: Any = make_instance(model) if is_instance else model
        aligned = AlignedModel(model=given, settings=settings, system_prompt="Be kind.", stop=("END",))
        with caplog.at_level(logging.WARNING, logger="drpo_graph"):
            for _ in range(2):
                if is_streamed:
                    said = "".join([str(one.text) async for one in aligned.astream("Hello")])
                else:
                    said = str((await aligned.ainvoke("Hello")).text)
                assert said.strip() == "Good day."
        statuses, taken = [status for status, _ in bodies(server)], [body for status, body in bodies(server)[-2:]]
        assert statuses in ([400, 200, 200], [422, 200, 200], [200, 200])
        assert (len(statuses) == 2) == model.endswith("5-5")
        (told,) = [one.getMessage() for one in caplog.records if one.name.startswith("drpo_graph")]
        assert f"{left_out} is no longer sent" in told
        name = SENT_AS.get(left_out, left_out) if model.startswith("anthropic") else left_out
        assert all(name not in body and body["max_tokens"] for body in taken)


@pytest.mark.parametrize("model", [CLAUDE, MISTRAL])
async def test_sampling_that_is_unset_is_not_sent(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = build_settings({"probe": False, "base": {"temperature": "none", "top_p": "none"}})
    async with serve(model, monkeypatch) as server:
        aligned = AlignedModel(model=model, settings=settings, system_prompt="Be kind.")
        await aligned.ainvoke("Hello")
        ((status, body),) = bodies(server)
        assert status == 200
        assert not {"temperature", "top_p"} & set(body)


async def test_search_with_another_provider_learns_once_and_tells_of_thinking_that_leaves_no_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(CLAUDE, monkeypatch, refuses=["temperature+top_p"], num_reasoning_tokens=500) as server:
        role: Any = {"model": CLAUDE, "base_url": None}
        desk = await open_desk("", role=role, max_concurrency=1)
        samples = await asyncio.gather(
            desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA),
            desk.models.optimizer.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA, num_samples=2),
        )
        assert [one.value for several in samples for one in several] == [4, 4, 4]
        assert [status for status, _ in bodies(server)] == [400, 200, 200, 200]
        assert desk.ledger.total_usage().reasoning_tokens == 1500
        desk = await open_desk("", role={**role, "max_tokens": 200})
        (sample,) = await desk.models.critic.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA)
        assert sample.failure is not None
        assert "reasoning took all of its tokens" in sample.failure.detail
