"""A collection of demonstrations in a database: stopped by its budget, resumed, shown and exported from there."""

from pathlib import Path

import pytest

from drpo_graph.oirl.tables import load_demonstrations
from tests.oirl.collection.script import answer, write_prompts, write_sums
from tests.support.command import KEY, Drpo, list_runs, serve
from tests.support.fake_server import ServerOptions


def test_collection_is_resumed_from_the_database(
    drpo: Drpo, uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--checkpoint", uri, "--display", "none")
    write_sums(folder / "sums.jsonl", 6)
    write_prompts(folder / "prompts.jsonl")
    with serve(answer, ServerOptions(api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        start = ("oirl", "collect", "sums.jsonl", "--prompts", "prompts.jsonl", "--model", "openai:scripted")
        assert drpo(*start, "--thread-id", "t", "--max-calls", "5", *place).code == 3
        assert list_runs(drpo, "--checkpoint", uri) == {"t": "interrupted"}
        assert drpo("resume", "t", "--max-calls", "100", *place).code == 0
        assert len({entry["key"] for entry in server.finished}) == len(server.finished) == 18
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "done"}
    assert "demonstrations 18, unlabelled 0" in drpo("show", "t", "--checkpoint", uri).out
    assert drpo("export", "t", "--output", "out", "--checkpoint", uri).code == 0
    assert len(load_demonstrations(folder / "out/t/demonstrations.jsonl")) == 18
