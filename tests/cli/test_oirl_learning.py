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


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("train", ("--seed", "-1"), "--seed"),
        ("train", ("--price", "inf"), "--price"),
        ("train", ("--price", "1"), "No demonstration tells its tokens"),
        ("evaluate", ("--seed", "-1"), "--seed"),
        ("evaluate", ("--test-share", "0"), "--test-share"),
        ("evaluate", ("--test-share", "nan"), "--test-share"),
        ("evaluate", ("--compared-with", "lightgbm"), "--compared-with lightgbm: not evaluated"),
        ("evaluate", ("--held-out", "3"), "leave at least one"),
        ("evaluate", ("--output", "logs.jsonl"), "is a file"),
        ("train", ("--output", "logs.jsonl"), "does not end in .npz"),
        ("train", ("--output", "logs.npz", "logs.npz"), "is read, and would be overwritten"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_embedded(
    drpo: Drpo, folder: Path, command: str, arguments: tuple[str, ...], named: str
) -> None:
    for name in ("logs.jsonl", "logs.npz"):
        rows = [one._replace(tokens=None) for one in make_world(60)]
        save_demonstrations(folder / "rows.jsonl", rows)
        (folder / "rows.jsonl").rename(folder / name)
    before = (folder / "logs.jsonl").read_bytes()
    output = () if "--output" in arguments else ("--output", "made.npz")
    ended = drpo("oirl", command, "logs.jsonl", *arguments, *output, *EMBEDDINGS, "http://127.0.0.1:9/v1")
    assert ended.code == 2, ended.err
    assert named in " ".join(ended.err.split())
    assert "a bug" not in ended.err
    assert (folder / "logs.jsonl").read_bytes() == before
    assert not (folder / "made.npz").exists()


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("q", "p", 1.0), ("r", "p", 1.0)], "Every one of the 2 outcomes is 1"),
        ([("q", "p", 1.0), ("r", "o", 0.0)], "too few to evaluate on"),
        ([("q", "p", 1.0, "m"), ("q", "p", 0.0, "n")], "choose one, with --model NAME"),
    ],
)
def test_logs_that_say_nothing_are_not_evaluated(
    drpo: Drpo, folder: Path, rows: list[tuple[str, str, float]], named: str
) -> None:
    save_demonstrations("few.jsonl", [Demonstration(*one) for one in rows])
    place = ("--embeddings-base-url", "http://127.0.0.1:9/v1")
    told = drpo("oirl", "evaluate", "few.jsonl", "--output", "out", "--embeddings", "openai:world", *place)
    assert_one_line(told, 2, named)
    assert not (folder / "out").exists()


def test_queries_are_not_sent_elsewhere_than_before(
    drpo: Drpo, logs: Path, folder: Path, world: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = drpo("oirl", "train", logs, "-o", "r.npz", "--reward-model", "neighbours", *EMBEDDINGS, world.base_url)
    assert trained.code == 0, trained.err
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert_one_line(drpo("oirl", "select", "Sum 5.", "--router", "r.npz"), 2, world.base_url, "--embeddings-base-url")
    told = drpo("generate", "Sum 5.", "--model", "openai:world", "--router", "r.npz")
    assert_one_line(told, 2, world.base_url, "--embeddings-base-url")


def test_anchors_of_other_prompts_are_told(drpo: Drpo, logs: Path, folder: Path, world: FakeServer) -> None:
    place = ("--embeddings-base-url", world.base_url)
    learning = ("--reward-model", "neighbours", "--embeddings", "openai:world", *place)
    assert drpo("oirl", "train", logs, "-o", "r.npz", *learning).code == 0
    (folder / "new.txt").write_text("Say it twice.\n")
    save_demonstrations("some.jsonl", [Demonstration("Sum 1.", one, 1.0) for one in ("Say it twice.", "Another.")])
    save_demonstrations("other.jsonl", [Demonstration("Sum 1.", "Another.", 1.0)])
    select = ("oirl", "select", "Sum 5.", "-r", "r.npz", "--prompts", "new.txt", *place, "--anchors")
    assert "note: --anchors: 1 of its 2 prompts are not in --prompts" in drpo(*select, "some.jsonl").err
    refused = drpo(*select, "other.jsonl")
    assert (refused.code, refused.out) == (2, "")
    assert "None of the 1 anchors is a trial of a prompt" in refused.err


def test_an_unknown_reward_model_is_named_before_anything_is_embedded(drpo: Drpo, logs: Path, tmp_path: Path) -> None:
    for command in ("train", "evaluate"):
        ended = drpo("oirl", command, logs, "-o", tmp_path / "out", "--reward-model", "magic")
        assert ended.code == 2
        assert "There is no reward model 'magic'" in ended.err


def test_a_file_that_is_no_router_is_named(drpo: Drpo, logs: Path) -> None:
    assert_one_line(drpo("oirl", "select", "Sum 5.", "--router", logs), 2, "holds no router")
    assert_one_line(drpo("oirl", "select", "Sum 5.", "--router", logs.parent / "none.npz"), 2, "cannot be read")
