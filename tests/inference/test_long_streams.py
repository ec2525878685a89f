"""A long response in many pieces costs as much as it is long, and no more."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from drpo_graph.calls.channel import Learned
from drpo_graph.inference.feed import ResponseFeed, _FeedingTransport
from drpo_graph.models.clients import build_client
from drpo_graph.models.request import Piece, Reply, Request
from drpo_graph.prompts.library import PromptFormat, load_prompts
from drpo_graph.settings.layers import build_settings

CLIENT = build_client("base", build_settings({"model": "vllm:m"}))
REQUEST = Request(messages=[{"role": "user", "content": "?"}])
WORDS = ("the ", "tide ", "is > ", "{a} ", "[b] ", "# c\n", "<d> ", "``` ")


class Stream:
    """Sends pieces as fast as they are taken."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    async def send(self, request: Request) -> Reply:
        raise AssertionError

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        for piece in self._pieces:
            yield Piece(piece)


async def read(pieces: list[str], form: PromptFormat) -> tuple[str, str]:
    """Return what was shown of a response, and the response."""
    feed = ResponseFeed(load_prompts().response_format(form))
    transport = _FeedingTransport(Stream(pieces), feed, CLIENT, Learned(), "a-key-for-tests")
    reply = await transport.send(REQUEST)
    feed.end()
    assert "".join([piece async for piece in feed]) == feed.shown
    return feed.shown, reply.choices[0].text


def make_pieces(number: int, *, begins: str) -> list[str]:
    return [begins, *(WORDS[place % len(WORDS)] for place in range(number))]


@pytest.mark.parametrize("form", ["chat", "flat"])
@pytest.mark.parametrize("begins", ["", "<think>", "<think>Hm.</think>", "So.</think>"], ids=repr)
def test_four_times_the_pieces_take_about_four_times_as_long(form: PromptFormat, begins: str) -> None:
    def measure(number: int) -> float:
        pieces, times = make_pieces(number, begins=begins), []
        for _ in range(3):
            started = time.process_time()
            asyncio.run(read(pieces, form))
            times.append(time.process_time() - started)
        return min(times)

    measure(10)
    # The square of it would be sixteen times as long.
    assert measure(8_000) < 6 * max(measure(2_000), 0.01)


@pytest.mark.parametrize("form", ["chat", "flat"])
def test_most_of_a_long_response_is_shown_before_its_end(form: PromptFormat) -> None:
    shown, text = asyncio.run(read(make_pieces(2_000, begins=""), form))
    assert text.startswith(shown)
    assert len(shown) > 0.95 * len(text)
