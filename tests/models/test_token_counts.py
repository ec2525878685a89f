"""Exact token counts from either dialect of ``/tokenize``, and ``None`` from a server that cannot tell."""

from collections.abc import Sequence
from typing import Any

import pytest

from drpo_graph.models.capabilities import Address, TokenDialect
from drpo_graph.models.http_json import Wire
from drpo_graph.models.token_counts import count_tokens
from drpo_graph.prompts.library import Message
from tests.support.fake_server import FakeServer, ServerOptions, build_echo_responder

MESSAGES: Sequence[Message] = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one two three"},
)


@pytest.mark.parametrize("dialect", ["vllm", "llama.cpp"])
async def test_messages_are_counted_with_their_template_and_a_text_without(dialect: TokenDialect) -> None:
    async with FakeServer(build_echo_responder(), ServerOptions(tokenizes=dialect)) as server:
        wire = Wire(Address(server.base_url, "m"), timeout_s=5)
        assert await count_tokens(wire, MESSAGES, dialect=dialect) == 9
        counts = [await count_tokens(wire, "word " * number, dialect=dialect) for number in range(5)]
        assert counts == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("dialect", "options"),
    [
        (None, {"tokenizes": "vllm"}),
        ("vllm", {}),
        ("llama.cpp", {}),
        # It counts prompts, but has no template to apply.
        ("llama.cpp", {"tokenizes": "vllm"}),
    ],
)
async def test_server_that_cannot_tell_gives_none(dialect: TokenDialect | None, options: dict[str, Any]) -> None:
    async with FakeServer(build_echo_responder(), ServerOptions(**options)) as server:
        wire = Wire(Address(server.base_url, "m"), timeout_s=5)
        assert await count_tokens(wire, MESSAGES, dialect=dialect) is None


async def test_server_that_is_gone_gives_none() -> None:
    async with FakeServer(build_echo_responder()) as server:
        wire = Wire(Address(server.base_url, "m"), timeout_s=5)
    assert await count_tokens(wire, "text", dialect="vllm") is None
