"""Every Python block of docs/inference.md gets an answer from the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage

from drpo_graph.prompt_registry import PromptRegistry, RegisteredPrompt
from tests.docs.snippets import Snippet, read_snippets, run_snippet
from tests.support.command import KEY, enter, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions

GUIDE = "docs/inference.md"
SNIPPETS = read_snippets(GUIDE)
EXPECTED = {
    "A prompt of your own": ("own", 0),
    "The optimised prompt with ICL examples": ("registry openai:gpt-4o-mini", 3),
    "A model that the registry does not know": ("general", 0),
    "What goes in, what comes out": ("general", 0),
}
"""Source of the system prompt and number of ICL examples, by heading."""


@pytest.fixture
def speaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that takes every model, a registry that knows one, and a working folder around it."""
    with serve(lambda body: Reply(["Here is why."]), ServerOptions(api_key=KEY, log_bodies=True)) as server:
        enter(tmp_path, monkeypatch, server)
        prompt = RegisteredPrompt(model="openai:gpt-4o-mini", system_prompt="Think of who asks.")
        PromptRegistry(tmp_path / "prompts").add(prompt)
        yield server


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.heading)
def test_snippet_gets_an_answer(snippet: Snippet, speaker: FakeServer) -> None:
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(snippet, GUIDE, namespace)
    message = namespace["message"]
    assert isinstance(message, AIMessage)
    source, num_examples = EXPECTED[snippet.heading]
    assert message.content == "Here is why."
    assert message.response_metadata["system_prompt_source"] == source
    sent = messages_of([entry["body"] for entry in speaker.log if entry["event"] == "start"][-1])
    assert sent is not None
    assert len(sent) == 2 + 2 * num_examples


def test_each_use_of_the_published_code_stands_next_to_ours() -> None:
    text = Path(__file__).resolve().parents[2].joinpath(GUIDE).read_text(encoding="utf-8")
    assert text.count("AutoModel(model_name=") == 3
    for choice in ("user_specified_system_prompt", "optimized_prompt", "optimized_icl", "num_optimized_icl"):
        assert choice in text
