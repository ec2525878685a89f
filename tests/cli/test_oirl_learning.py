"""``drpo oirl train, select, evaluate`` from the outside."""

import json
from pathlib import Path

import pytest

from drpo_graph.oirl.demonstrations import Demonstration
from drpo_graph.oirl.tables import save_demonstrations
from tests.support.command import Drpo, assert_one_line
from tests.support.fake_server import FakeServer
from tests.support.prompt_worlds import PROMPTS, make_world

pytest.importorskip("sklearn", reason="needs the extra oirl")

EMBEDDINGS = ("--embeddings", "openai:world", "--embeddings-base-url")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    path = tmp_path / "logs.jsonl"
    save_demonstrations(path, make_world(120, test_share=0.25))
    return path


def test_a_router_is_trained_and_chooses(drpo: Drpo, logs: Path, tmp_path: Path, world: FakeServer) -> None:
    router = tmp_path / "router.npz"
    trained = drpo("oirl", "train", logs, "-o", router, "--reward-model", "neighbours", *EMBEDDINGS, world.base_url)
    assert trained.code == 0, trained.err
    assert "learned from 270 trials of 3 prompts on 90 queries" in trained.out
    assert f"router: {router}" in trained.out
    chosen = drpo("oirl", "select", "Sum 5 with 5 steps.", "--router", router, "--embeddings-base-url", world.base_url)
    assert chosen.out.strip() in PROMPTS
    told = drpo("oirl", "select", "Sum 5.", "--router", router, "--embeddings-base-url", world.base_url, "--json")
    choice = json.loads(told.out)
    assert choice["prompt"] in PROMPTS
    assert choice["query"] == "Sum 5."
    assert isinstance(choice["has_abstained"], bool)


def test_prompts_that_were_never_tried_are_chosen_among_with_anchors(
    drpo: Drpo, logs: Path, tmp_path: Path, world: FakeServer
) -> None:
    router, prompts, anchors = tmp_path / "router.npz", tmp_path / "new.txt", tmp_path / "anchors.jsonl"
    place = ("--embeddings-base-url", world.base_url)
    arguments = ("-o", router, "--reward-model", "neighbours", "--portfolio", "2", *EMBEDDINGS, world.base_url)
    trained = drpo("oirl", "train", logs, *arguments)
    assert trained.code == 0, trained.err
    assert "portfolio: " in trained.out
    prompts.write_text("Say it twice.\nCount again.\n")
    save_demonstrations(
        anchors,
        [
            Demonstration(f"Sum {number}.", prompt, outcome)
            for number in range(30)
            for prompt, outcome in (("Say it twice.", 1.0), ("Count again.", 0.0))
        ],
    )
    chosen = drpo("oirl", "select", "Sum 5.", "-r", router, "--prompts", prompts, "--anchors", anchors, *place)
    assert chosen.out.strip() == "Say it twice."
    assert_one_line(drpo("oirl", "select", "Sum 5.", "-r", router, "--anchors", anchors), 2, "--prompts")


def test_an_evaluation_is_printed_and_written(drpo: Drpo, logs: Path, tmp_path: Path, world: FakeServer) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra oirl")
    arguments = ("--rounds", "2", "--reward-model", "neighbours", *EMBEDDINGS, world.base_url)
    done = drpo("oirl", "evaluate", logs, "-o", tmp_path / "out", *arguments)
    assert done.code == 0, done.err
    assert "| router (neighbours) | training |" in done.out
    assert done.out.rstrip("\n") == (tmp_path / "out/report.md").read_text().rstrip("\n")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("", "There are no demonstrations"),
        ('{"query": "q", "prompt": "p", "outcome": 2}\n', "outcome 2, expected a number from 0 to 1"),
        ('{"query": "q", "prompt": "p", "outcome": 1}\n', "Every one of the 1 outcomes is 1"),
        ('{"query": "q", "prompt": "p"}\n', "no column outcome"),
        ('{"query": "q", "prompt": "p", "outcome": 1, "split": "test"}\n', "All demonstrations are on the test side"),
    ],
)
def test_what_cannot_be_learned_from_is_named(drpo: Drpo, tmp_path: Path, rows: str, named: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(rows)
    ended = drpo("oirl", "train", path, "-o", tmp_path / "r.npz", *EMBEDDINGS, "http://127.0.0.1:9/v1")
    assert ended.code == 2
    assert named in ended.err
    assert not (tmp_path / "r.npz").exists()


def test_an_unknown_reward_model_is_named_before_anything_is_embedded(drpo: Drpo, logs: Path, tmp_path: Path) -> None:
    for command in ("train", "evaluate"):
        ended = drpo("oirl", command, logs, "-o", tmp_path / "out", "--reward-model", "magic")
        assert ended.code == 2
        assert "There is no reward model 'magic'" in ended.err


def test_a_file_that_is_no_router_is_named(drpo: Drpo, logs: Path) -> None:
    assert_one_line(drpo("oirl", "select", "Sum 5.", "--router", logs), 2, "holds no router")
    assert_one_line(drpo("oirl", "select", "Sum 5.", "--router", logs.parent / "none.npz"), 2, "cannot be read")
