"""Every Python block of docs/any_prompt.md runs, and asks models."""

import pytest

from tests.docs.snippets import Snippet, read_snippets, run_snippet
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

GUIDE = "docs/any_prompt.md"
COMMON, *SNIPPETS = read_snippets(GUIDE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.heading)
def test_snippet_runs_a_search(snippet: Snippet, world: FakeServer) -> None:
    num_calls = len(finished_keys(world))
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(COMMON, GUIDE, namespace)
    run_snippet(snippet, GUIDE, namespace)
    assert len(finished_keys(world)) > num_calls
