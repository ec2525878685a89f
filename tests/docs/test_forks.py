"""The Python blocks on reviews, forks and warm starts run."""

import pytest

from drpo_graph.cli.app import _run
from drpo_graph.records import RunResult
from tests.docs.snippets import read_snippets, run_snippet

DOCUMENT = "docs/in_the_loop.md"
FORMER = (
    "--model",
    "openai:world",
    "--depth",
    "3",
    "--beam-size",
    "1",
    "--queries-per-level",
    "1",
    "--display",
    "none",
)


@pytest.mark.usefixtures("world")
def test_blocks_on_forks_and_warm_starts_run() -> None:
    assert _run(["optimize", *FORMER, "--thread-id", "THREAD"], is_debug=False) == 0
    snippets = [one for one in read_snippets(DOCUMENT) if one.heading in ("Forks", "Warm start")]
    assert len(snippets) == 2
    for snippet in snippets:
        namespace: dict[str, object] = {"__name__": "snippet"}
        run_snippet(snippet, DOCUMENT, namespace)
        assert isinstance(namespace["result"], RunResult)


@pytest.mark.usefixtures("world")
def test_block_on_reviews_runs() -> None:
    reviewed = ("--depth", "2", "--beam-size", "2", "--n-actions", "3", "--queries-per-level", "2", "--seed", "5")
    assert _run(["optimize", *FORMER, *reviewed, "--approve", "--thread-id", "THREAD"], is_debug=False) == 4
    (snippet,) = [one for one in read_snippets(DOCUMENT) if one.heading == "Review between levels"]
    namespace: dict[str, object] = {"__name__": "snippet"}
    run_snippet(snippet, DOCUMENT, namespace)
    assert isinstance(namespace["result"], RunResult)
