"""Every Python block of docs/inference.md gets an answer from the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage

from drpo_graph.records import RunResult
from tests.docs.snippets import Snippet, read_snippets, run_snippet
from tests.support.command import KEY, enter, serve
from tests.support.fake_replies import messages_of
from tests.support.fake_server import FakeServer, Reply, ServerOptions

GUIDE = "docs/inference.md"
SNIPPETS = read_snippets(GUIDE)
EXPECTED = {
    "A prompt of your own": ("own", 0),
    "The optimised prompt with ICL examples": ("run tides", 3),
    "A model that the registry does not know": ("general", 0),
    "A prompt for each query": ("router by length", 0),
    "What goes in, what comes out": ("general", 0),
}
"""Source of the system prompt and number of ICL examples, by heading."""


RESULT = RunResult(
    thread_id="tides",
    status="done",
    system_prompt="Think of who asks.",
    candidate_id="1",
    reward=4.0,
    path_reward=4.0,
    initial_prompt="Help.",
    initial_reward=3.0,
    depth=1,
    trace=("0", "1"),
    beam=("1",),
    usage_by_role={},
    failures_by_kind={},
    fingerprints={},
    format=1,
)


@pytest.fixture
def speaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that takes every model, and a working folder with a run's result."""
    with serve(lambda body: Reply(["Here is why."]), ServerOptions(api_key=KEY, log_bodies=True)) as server:
        enter(tmp_path, monkeypatch, server)
        folder = tmp_path / "drpo_runs" / "tides"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(RESULT.model_dump_json())
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
