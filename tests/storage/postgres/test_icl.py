"""A run over ICL examples in a database: stopped by its budget, resumed, and shown from anywhere."""

import json
from pathlib import Path

import pytest

from tests.icl.test_loop import Script, plans
from tests.support.command import KEY, Drpo, list_runs, serve
from tests.support.fake_server import ServerOptions


def test_run_is_resumed_from_the_database(drpo: Drpo, uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("--checkpoint", uri, "--display", "none")
    (folder / "mine.json").write_text(json.dumps({one.query: one.response for one in plans("2,4,3", "5")}))
    with serve(Script(), ServerOptions(api_key=KEY)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        search = ("icl", "mine.json", "--model", "openai:scripted", "--num-iters", "2", "--thread-id", "t")
        assert drpo(*search, "--max-calls", "4", *place).code == 3
        assert list_runs(drpo, "--checkpoint", uri) == {"t": "interrupted"}
        assert drpo("resume", "t", "--max-calls", "100", *place).code == 0
    assert list_runs(drpo, "--checkpoint", uri) == {"t": "done"}
    assert "mean reward 3.50 -> 4.50" in drpo("show", "t", "--checkpoint", uri).out
