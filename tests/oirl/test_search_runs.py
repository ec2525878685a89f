"""Searches as demonstrations."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_graph import RunOptions, build_settings, optimize
from drpo_graph.errors import RunNotFoundError, UsageError
from drpo_graph.icl import optimize_icl
from drpo_graph.oirl.search_runs import read_run_demonstrations
from drpo_graph.oirl.tables import load_demonstrations
from drpo_graph.records import ICLExample
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.places import find_storage
from tests.support.command import MODEL, SMALL, Drpo, assert_one_line, enter, serve_world
from tests.support.embeddings import serve_embeddings_beside
from tests.support.fake_server import FakeServer


@pytest.fixture(scope="module")
def world() -> Iterator[FakeServer]:
    with serve_world() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: FakeServer) -> Path:
    return enter(tmp_path, monkeypatch, world)


def test_every_critique_of_searches_becomes_a_row(drpo: Drpo, folder: Path) -> None:
    for name in "tu":
        assert drpo("optimize", *SMALL, "--seed", str(ord(name)), "--thread-id", name, "--display", "none").code == 0
    outcome = drpo("oirl", "from-run", "t", "u", "--output", "rows.jsonl")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[-1] == "next: drpo oirl train rows.jsonl --output router.npz"
    table = load_demonstrations(folder / "rows.jsonl")
    counts = {line.split(":")[0]: int(line.split()[1]) for line in lines[:2]}
    assert sum(counts.values()) == len(table)
    assert min(counts.values()) > 5
    rows = list(table)
    assert {row.model for row in rows} == {"openai:world"}
    assert all(row.tokens is None and row.split == "" for row in rows)
    assert len({row.outcome for row in rows}) > 2
    assert "You are a helpful assistant." in table.prompts
    assert {name.partition("/")[0] for name in table.prompt_names} == {"t", "u"}


def test_portfolio_of_a_searchs_candidates_is_learned_and_says_whether_it_pays(drpo: Drpo, folder: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra oirl")
    larger = (*SMALL[:2], "--depth", "4", "--n-actions", "3", "--beam-size", "2", "--queries-per-level", "6")
    assert drpo("optimize", *larger, "--thread-id", "t", "--display", "none").code == 0
    assert drpo("oirl", "from-run", "t", "--output", "rows.parquet").code == 0
    with serve_embeddings_beside() as embedder:
        place = ("--embeddings-base-url", embedder.base_url)
        learning = ("--reward-model", "neighbours", "--portfolio", "3", "--embeddings", "openai:world", *place)
        trained = drpo("oirl", "train", "rows.parquet", "--output", "router.npz", *learning)
        assert trained.code == 0, trained.err
        (told,) = [line for line in trained.out.splitlines() if line.startswith("portfolio: ")]
        assert re.search(r"beat the best of them|no gain over the best|too few outcomes|no second prompt", told)
        chosen = drpo("oirl", "select", "Why is the sea salty?", "--router", "router.npz", *place)
    assert chosen.out.rstrip("\n") in load_demonstrations(folder / "rows.parquet").prompts


async def test_unscored_and_repeated_responses_are_left_out_and_counted(folder: Path) -> None:
    storage = find_storage("runs.sqlite")
    settings = build_settings(
        {"model": MODEL[1], "depth": 2, "n_actions": 1, "beam_size": 1, "queries_per_level": 3, "probe": False}
    )
    await optimize(settings=settings, thread_id="t", options=RunOptions(checkpoint="runs.sqlite", writes_files=False))
    (before,) = await read_run_demonstrations(storage, ["t", "t"])
    async with storage.open_run("t", must_exist=True) as checkpoint:
        archive = Archive(checkpoint.store, "t")
        stored = await archive.get_all("rollouts")
        candidate = await archive.candidate("0")
        await archive.put_candidates([{**candidate, "id": "1.9.9", "origin": "kept"}])
        first, *_ = (key for key in stored if key.startswith("0/"))
        twin = {**stored[first], "candidate_id": "1.9.9"}
        await archive.put("rollouts", f"1.9.9/{first.partition('/')[2]}", twin)
        last = max(key for key in stored if not key.startswith("0/"))
        failure = {"kind": "unparsable", "detail": "no score"}
        await archive.put("rollouts", last, {**stored[last], "critique": None, "reward": 0.0, "failure": failure})
    (after,) = await read_run_demonstrations(storage, ["t"])
    assert len(after.rows) == len(before.rows) - 1
    assert (after.num_unscored - before.num_unscored, after.num_repeated - before.num_repeated) == (1, 1)


async def test_only_searches_that_hold_something_are_read(folder: Path) -> None:
    options, storage = RunOptions(checkpoint="runs.sqlite", writes_files=False), find_storage("runs.sqlite")
    settings = build_settings({"model": MODEL[1], "probe": False})
    await optimize_icl(
        [ICLExample(query="Q?", response="A.")], settings=settings, num_iters=1, thread_id="icl", options=options
    )
    with pytest.raises(UsageError, match=r"optimises ICL examples.*drpo optimize"):
        await read_run_demonstrations(storage, ["icl"])
    with pytest.raises(RunNotFoundError):
        await read_run_demonstrations(storage, ["nobody"])


def test_wrong_usage_is_one_line(drpo: Drpo, folder: Path) -> None:
    assert drpo("optimize", *SMALL, "--thread-id", "t", "--display", "none").code == 0
    assert_one_line(drpo("oirl", "from-run", "t", "--output", "rows.csv"), 2, ".parquet or .jsonl")
    assert_one_line(drpo("oirl", "from-run", "t", "u", "--output", "rows.jsonl"), 2, "'u'")
    assert_one_line(drpo("oirl", "from-run", "t"), 2, "--output")
    assert drpo("prune", "t", "--keep", "result", "--yes").code == 0
    assert_one_line(drpo("oirl", "from-run", "t", "--output", "rows.jsonl"), 2, "drpo prune --keep result")
    assert not (folder / "rows.jsonl").exists()
