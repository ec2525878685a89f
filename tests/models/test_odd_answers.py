"""Whatever a server answers under 200: it is a reply, or a failed try of its kind, and never the end of a run."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.answer_fuzz import ASKS, URL, fuzz, odd_server
from tests.support.odd_answers import BODIES, FIELDS, NO_CHOICES, Spoil
from tests.support.roles import Desk, open_desk

WHOLE = ("chat, JSON", "completions")
STREAMED = ("chat, streamed", "completions, streamed")
SLOW = ("embeddings", "probe")
"""Tens of milliseconds each."""

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


async def ask_once(name: str, spoil: Spoil, *, is_lasting: bool = False) -> tuple[str, Desk]:
    """Return how asking ended whose first answer is odd, or whose answers all are, and the run that asked."""
    role, ask = ASKS[name]
    async with odd_server() as server:
        desk = await open_desk(URL, role=role, retry_wait_s=0.001, max_retries=1)
        server.spoil, server.is_lasting = lambda answer: spoil(dict(answer)), is_lasting
        end = await ask(desk, "What is it?")
        assert server.num_requests < 20
        return end, desk


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("spoil", BODIES.values(), ids=BODIES)
async def test_an_answer_that_is_no_reply_is_asked_for_again(name: str, spoil: Spoil) -> None:
    end, desk = await ask_once(name, spoil)
    assert end == "value"
    (retry,) = desk.retries
    assert retry.kind == "malformed"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("spoil", FIELDS.values(), ids=FIELDS)
async def test_what_is_odd_beside_a_reply_costs_nothing(name: str, spoil: Spoil) -> None:
    end, desk = await ask_once(name, spoil)
    assert end == "value"
    assert not desk.retries
    (call,) = desk.calls
    assert 0 <= call.usage.prompt_tokens <= 100
    assert 0 <= call.usage.completion_tokens <= 100


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("body", ["choices empty", *BODIES])
async def test_a_server_that_answers_nothing_else_leaves_a_reason(name: str, body: str) -> None:
    end, desk = await ask_once(name, BODIES.get(body, NO_CHOICES), is_lasting=True)
    assert end == ("no value: unavailable" if body in BODIES else "no value: empty")
    assert {retry.kind for retry in desk.retries} == ({"malformed"} if body in BODIES else set())


@pytest.mark.parametrize("name", ASKS)
async def test_any_field_may_be_anything(name: str) -> None:
    runs = 40 if name in SLOW else 300
    ends: Mapping[str, Any] = await fuzz(name, runs=runs)
    assert sum(ends.values()) == runs
    assert ends["value"] > runs / 4
    if name in STREAMED or name == "embeddings":
        # Nobody asks again there: that is for the callers.
        assert len(ends) > 1
