"""Every Python block of docs/extending.md works, is short, and really runs a search."""

import ast

import pytest

from drpo_graph.parts import protocols
from drpo_graph.records import RunResult
from tests.docs.snippets import Snippet, read_snippets, run_snippet
from tests.support.command import finished_keys
from tests.support.fake_server import FakeServer

GUIDE = "docs/extending.md"
COMMON, *SNIPPETS = read_snippets(GUIDE)
MAX_LINES = 20


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.heading)
def test_snippet_runs_a_search(snippet: Snippet, world: FakeServer) -> None:
    num_calls = len(finished_keys(world))
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(COMMON, GUIDE, namespace)
    run_snippet(snippet, GUIDE, namespace)
    assert len(finished_keys(world)) > num_calls
    if "build_graph" not in snippet.code:
        result = namespace["result"]
        assert isinstance(result, RunResult)
        assert result.status == "done"
        assert result.reward is not None
        # The replacement did its work: nothing had to stand in for it.
        assert result.failures_by_kind == {}


@pytest.mark.parametrize("snippet", [COMMON, *SNIPPETS], ids=lambda snippet: snippet.heading)
def test_snippet_is_short(snippet: Snippet) -> None:
    assert len([line for line in snippet.code.splitlines() if line.strip()]) < MAX_LINES


def test_every_protocol_has_an_example() -> None:
    methods = {"select_metrics", "critique", "rewrite", "retrieve"}
    code = "\n".join(snippet.code for snippet in SNIPPETS)
    defined = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.AsyncFunctionDef)}
    assert methods <= defined
    own = [value for value in vars(protocols).values() if getattr(value, "__module__", "") == protocols.__name__]
    names = {value.__name__ for value in own if getattr(value, "_is_protocol", False)}
    parts = {"MetricSelector", "Critic", "RewardFunction", "Rewriter", "BeamPolicy", "ExampleRetriever"}
    assert names == parts
    headings = " ".join(snippet.heading for snippet in SNIPPETS).lower()
    replaced = ("metric selector", "critic", "reward function", "rewriter", "beam policy", "example retriever")
    for part in (*replaced, "dataset", "templates"):
        assert part in headings
