from collections.abc import AsyncIterator

import pytest

from tests.support.command import KEY
from tests.support.fake_replies import messages_of, text_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions


def say(body: dict[str, object]) -> Reply:
    """Answer with what was asked last, and go on with an exchange that nobody had."""
    messages = messages_of(body)
    asked = (
        text_of(messages[-1]["content"]) if messages else str(body["prompt"]).split("# Query")[-1].split("# Answer")[0]
    )
    return Reply([f"  You asked: {asked.strip()}\n" + ("" if messages else "\n# Query\nMore?\n\n# Answer\nNo.")])


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeServer]:
    """A server that repeats what it is asked, and keeps the requests."""
    async with FakeServer(say, ServerOptions(api_key=KEY, log_bodies=True)) as running:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running
