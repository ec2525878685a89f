"""Published logs as labels by query and prompt."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import ArrayLike
from pyarrow import parquet

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.published import read_published
from tests.oirl.published.folders import HELD_OUT, PROMPTS, QUESTIONS, TEST, TRAIN, write_labels

REAL = Path(__file__).resolve().parents[4] / "shared/data/oirl/gsm8k"


def write_parquet(folder: Path, rows: list[dict[str, object]] | None = None) -> Path:
    """Put the labels into a Parquet file instead."""
    write_labels(folder)
    if rows is None:
        columns = [("train", 0, TRAIN), ("test", 3, (*TEST, HELD_OUT))]
        rows = [
            {"row": start + n, "query": start + n, "prompt": prompt, "split": split, "correct": bool(right)}
            for split, start, by_prompt in columns
            for prompt, answers in enumerate(by_prompt)
            for n, right in enumerate(answers)
        ]
    (folder / "labels.npz").unlink()
    parquet.write_table(pa.Table.from_pylist(rows), folder / "labels.parquet")
    return folder


def problem(folder: Path) -> str:
    with pytest.raises(DemonstrationsError) as caught:
        read_published(folder)
    return str(caught.value)


@pytest.mark.parametrize("write", [write_labels, write_parquet])
def test_each_label_is_a_row_of_its_side(tmp_path: Path, write: object) -> None:
    assert callable(write)
    logs = read_published(write(tmp_path))
    rows = {(row.query, row.prompt): (row.outcome, row.split) for row in logs}
    assert len(logs) == len(rows) == len(list(logs)) == 12
    assert rows["Two?", "The answer is:"] == (0.0, "train")
    assert rows["Three?", "Think: "] == (1.0, "train")
    assert [rows[text, PROMPTS[2]] for text in QUESTIONS[3:]] == [(0.0, "test"), (1.0, "test")]
    assert (QUESTIONS[0], PROMPTS[2]) not in rows
    assert {row.prompt_name for row in logs if row.prompt == PROMPTS[2]} == {"gpt4_0"}
    assert logs.left_out == ()


def test_the_arrays_and_the_parquet_file_say_the_same(tmp_path: Path) -> None:
    one, other = (
        Demonstrations.from_rows(read_published(write(tmp_path / name)))
        for name, write in (("a", write_labels), ("b", write_parquet))
    )
    assert one.digest() == other.digest()


def test_a_pair_that_was_drawn_often_has_as_many_rows(tmp_path: Path) -> None:
    labels = np.array([[1, -1, -1], [0, 0, -1]])
    trials, right = np.array([[4, 0, 0], [1, 2, 0]]), np.array([[3, 0, 0], [0, 0, 0]])
    given = {"labels": labels, "trials": trials, "succ": right, "row_query": [0, 1], "row_split": [0, 1]}
    rows = list(read_published(write_labels(tmp_path, **given)))
    assert Counter((row.query, row.prompt, row.outcome) for row in rows) == {
        ("One?", PROMPTS[0], 1.0): 3,
        ("One?", PROMPTS[0], 0.0): 1,
        ("Two?", PROMPTS[0], 0.0): 1,
        ("Two?", PROMPTS[1], 0.0): 2,
    }


def test_repeated_rows_of_the_parquet_file_are_draws(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"row": 7, "query": 1, "prompt": 0, "split": "train", "correct": right} for right in (True, False, True)
    ]
    assert [row.outcome for row in read_published(write_parquet(tmp_path, rows))] == [1.0, 1.0, 0.0]


def test_a_query_that_was_logged_on_both_sides_stays_on_both(tmp_path: Path) -> None:
    rows = list(read_published(write_labels(tmp_path, row_query=[0, 1, 2, 0, 1])))
    assert {row.split for row in rows if row.query == "One?"} == {"train", "test"}


def test_the_self_critic_s_confidence_goes_with_its_row(tmp_path: Path) -> None:
    write_labels(tmp_path)
    np.savez(tmp_path / "critics.npz", rows=[4, 3], confidence=[[0.5, 0.25, np.nan], [0.75, 1, 0]], critic=[[1, 1, 1]])
    found = {(row.query, row.prompt_name): row.confidence for row in read_published(tmp_path)}
    assert [found["Five?", name] for name in ("nan", "CoT", "gpt4_0")] == [0.5, 0.25, None]
    assert [found["Four?", name] for name in ("nan", "CoT", "gpt4_0")] == [0.75, 1.0, 0.0]
    assert found["One?", "nan"] is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": np.full((5, 3), 2)}, "label 2 at 0, 0, expected right (1) or wrong (0)"),
        ({"labels": np.full((5, 3), "yes")}, "labels in labels.npz is (5, 3) of <U3, expected numbers of (5, 3)"),
        ({"labels": np.zeros((4, 3))}, "labels in labels.npz is (4, 3) of float64, expected numbers of (5, 3)"),
        ({"row_query": [0, 1, 2, 3, 5]}, "row_query in labels.npz: 5, expected 0 to 4"),
        ({"row_split": [0, 0, 0, 0, 2]}, "row_split in labels.npz: 2, expected 0 to 1"),
        ({"prompt_names": ["nan", "APE", "gpt4_0"]}, "Prompt 1 is 'APE' in labels.npz and 'CoT'"),
        ({"prompt_names": ["nan"]}, "labels.npz has 1 prompt_names, and there are 3 prompts"),
        ({"trials": np.ones((5, 3), int)}, "labels.npz has no array succ"),
        ({"trials": np.ones((5, 3), int), "succ": np.zeros((5, 3), int)}, "3 labels do not fit"),
        ({"trials": np.ones((5, 3), int), "succ": np.full((5, 3), 2)}, "row 0, prompt 0: 2 of 1 trials are right"),
    ],
)
def test_labels_that_do_not_fit_are_told(tmp_path: Path, changes: dict[str, ArrayLike], told: str) -> None:
    said = problem(write_labels(tmp_path, **changes))
    assert said.startswith(f"The logs in {tmp_path} cannot be used:")
    assert told in said


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query": 9}, "query in labels.parquet: 9, expected 0 to 4"),
        ({"prompt": 3}, "prompt in labels.parquet: 3, expected 0 to 2"),
        ({"split": "dev"}, "split 'dev', expected train or test"),
        ({"correct": None}, "labels of the type object"),
        ({"row": 0}, "row 0 stands for more than one query or side"),
    ],
)
def test_rows_of_the_parquet_file_that_do_not_fit_are_told(tmp_path: Path, row: dict[str, object], told: str) -> None:
    first: dict[str, object] = {"row": 0, "query": 0, "prompt": 0, "split": "train", "correct": True}
    assert told in problem(write_parquet(tmp_path, [first, {**first, "row": 1, "query": 1, **row}]))


@pytest.mark.parametrize(
    ("critics", "told"),
    [
        ({"rows": [5], "confidence": [[0, 0, 0]]}, "row 5 is not among the labels"),
        ({"rows": [3], "confidence": [[0, 2, 0]]}, "confidence 2, expected a number from 0 to 1"),
        ({"rows": [3], "confidence": [[0.5, 0.5]]}, "(1, 2) of float64, expected numbers of (1, 3)"),
        ({"rows": [3]}, "critics.npz has no array confidence"),
    ],
)
def test_critics_that_do_not_fit_are_told(tmp_path: Path, critics: dict[str, ArrayLike], told: str) -> None:
    write_labels(tmp_path)
    np.savez(tmp_path / "critics.npz", **{name: np.asarray(one) for name, one in critics.items()})
    assert told in problem(tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, labels=np.array([[object()]]))
    assert "without pickles" in problem(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no array"])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    write_labels(tmp_path)
    (tmp_path / "labels.npz").write_bytes(content)
    assert f"{tmp_path / 'labels.npz'} cannot be read" in problem(tmp_path)


def test_a_damaged_file_is_told_wherever_the_damage_is(tmp_path: Path) -> None:
    write_labels(tmp_path)
    path = tmp_path / "labels.npz"
    with np.load(path) as arrays:
        np.savez_compressed(path, **arrays)
    whole, draw = path.read_bytes(), random.Random(7)
    num_told = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_published(tmp_path)
        except DemonstrationsError:
            num_told += 1
    assert num_told > 100


@pytest.mark.skipif(not REAL.is_dir(), reason="the published logs are not here (../shared/data/oirl)")
@pytest.mark.parametrize("only", ["labels.npz", "labels.parquet"])
def test_the_published_logs_of_gsm8k_have_their_rows(tmp_path: Path, only: str) -> None:
    for name in (only, "queries.jsonl", "prompts.json", "critics.npz"):
        (tmp_path / name).symlink_to(REAL / name)
    found = Demonstrations.from_rows(read_published(tmp_path))
    assert (int(found.is_in("train").sum()), int(found.is_in("test").sum())) == (44_838, 16_000)
    assert (len(found.queries), len(found.prompts)) == (8_473, 16)
    assert np.isfinite(found.confidences).sum() == 16_000
    # The mean over test queries, of the prompts that were trained on and of those that were held out.
    means = found.take(found.is_in("test")).grid().mean[7_473:].mean(axis=0)
    assert [float(part.mean()) for part in (means[:6], means[6:])] == pytest.approx([0.185, 0.195], abs=0.0005)
