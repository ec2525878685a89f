"""Published logs as their repository has them."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.published import PublishedLogs, read_published
from tests.oirl.published.folders import (
    PROMPTS,
    QUESTIONS,
    write_answers,
    write_held_out,
    write_labels,
    write_queries,
    write_release,
)

Release = tuple[Path, Path, Path]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A copy of the repository, its queries and its held-out prompt."""
    folder = write_release(tmp_path / "copy")
    return folder, write_queries(tmp_path / "queries.jsonl"), write_held_out(tmp_path / "held-out.json")


def read(release: Release) -> PublishedLogs:
    folder, queries, prompts = release
    return read_published(folder, queries=queries, prompts=prompts)


def problem(release: Release) -> str:
    with pytest.raises(DemonstrationsError) as caught:
        read(release)
    return str(caught.value)


def test_the_repository_s_files_say_what_labels_say(release: Release, tmp_path: Path) -> None:
    logs = read(release)
    labels = read_published(write_labels(tmp_path / "labels"), model="llama-2-7b-chat")
    assert [row._replace(confidence=None) for row in logs] == list(labels)
    assert logs.left_out == ()


def test_the_critic_s_confidence_is_of_the_test_side(release: Release) -> None:
    found = {(row.query, row.prompt_name): row.confidence for row in read(release)}
    assert [found["Five?", name] for name in ("nan", "CoT", "gpt4_0")] == pytest.approx([0.9, 0.45, 0.3])
    assert found["One?", "nan"] is None


def test_without_queries_the_error_says_what_to_give(release: Release) -> None:
    with pytest.raises(DemonstrationsError, match=r"no texts of queries: name a file of them in the logs' order"):
        read_published(release[0])


def test_held_out_prompts_without_a_text_are_left_out_and_named(release: Release) -> None:
    logs = read_published(release[0], queries=release[1])
    assert {row.prompt for row in logs} == set(PROMPTS[:2])
    assert len(logs) == 10
    assert logs.left_out == (
        "1 prompts have answers and no text, and are left out ('gpt4_0'): name a file of prompts with their texts.",
    )


def test_given_texts_are_taken_by_name_and_replace_those_of_the_repository(release: Release) -> None:
    given = [
        {"name": "gpt4_0", "text": "Look: "},
        {"name": "CoT", "text": "Really think: "},
        {"name": "x", "text": "x"},
    ]
    release[2].write_text(json.dumps(given))
    logs = read(release)
    assert [one.text for one in logs.prompts] == ["The answer is:", "Really think: ", "Look: "]
    assert logs.left_out == ("Prompt 'CoT' has another text in sums_names.json: not used.",)


def test_texts_without_names_are_those_of_the_held_out_prompts_or_of_all(release: Release) -> None:
    release[2].write_text(json.dumps(PROMPTS))
    assert [one.text for one in read(release).prompts] == list(PROMPTS)
    release[2].write_text(json.dumps(PROMPTS[:2]))
    assert "2 texts without names, expected 1, of the held-out prompts, or 3, of all" in problem(release)


def test_held_out_prompts_are_in_the_order_of_their_numbers(release: Release) -> None:
    results = release[0] / "llama_results/sums"
    for number in (10, 2):
        write_answers(results / f"llama_sums_corr_gpt4_{number}.txt", {0: 1, 1: 1})
        np.save(release[0] / f"critics/Processed_llama_sums_prompt_{2 + number}_confidence.npy", [0.5, number / 100])
    release[2].write_text(json.dumps(["zero", "two", "ten"]))
    logs = read(release)
    assert [one.name for one in logs.prompts[2:]] == ["gpt4_0", "gpt4_2", "gpt4_10"]
    found = {(row.query, row.prompt): row.confidence for row in logs}
    # A critic numbers prompts as they are named, whether all of them were logged or not.
    assert [found["Five?", text] for text in ("two", "ten")] == pytest.approx([0.02, 0.1])


def test_the_files_of_lines_stand_in_for_missing_arrays(release: Release) -> None:
    whole = list(read(release))
    results = release[0] / "llama_results/sums"
    for path in (release[0] / "LMllama2").glob("*.npy"):
        path.unlink()
    assert "LMllama2/sums_train_nan.npy is missing." in problem(release)
    write_answers(results / "llama_sums_corr_nan.txt", {0: 1, 1: 0, 2: 1})
    write_answers(results / "llama_sums_corr_CoT.txt", {2: 1, 1: 0, 0: 0})
    write_answers(results / "llama_sums_test_corr_nan.txt", {0: 1, 1: 1})
    write_answers(results / "llama_sums_test_corr_CoT.txt", {0: 0, 1: 1})
    assert list(read(release)) == whole


def test_lines_that_lack_or_come_again_are_told_and_the_others_kept(release: Release) -> None:
    path = release[0] / "llama_results/sums/llama_sums_corr_gpt4_0.txt"
    path.write_text("(1, True)\n\n(1, False)\n")
    logs = read(release)
    assert [(row.query, row.outcome) for row in logs if row.prompt_name == "gpt4_0"] == [("Five?", 1), ("Five?", 0)]
    assert logs.left_out == (
        "llama_sums_corr_gpt4_0.txt answers 1 of 2 queries: the others have no row with this prompt.",
        "llama_sums_corr_gpt4_0.txt answers 1 times again: each answer is a row of its own.",
    )


@pytest.mark.parametrize("line", ["(0, Maybe)", "0 True", "(2, True)", "(99999999999, True)", "(-1, True)"])
def test_a_line_that_is_none_is_told_with_its_place(release: Release, line: str) -> None:
    (release[0] / "llama_results/sums/llama_sums_corr_gpt4_0.txt").write_text(f"(0, True)\n{line}\n")
    assert f"llama_sums_corr_gpt4_0.txt:2: {line!r}, expected a" in problem(release)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        (
            "LMllama2/sums_train_CoT.npy",
            [True, False],
            "sums_train_CoT.npy answers 2 of 3 queries, and does not say which",
        ),
        ("LMllama2/sums_train_CoT.npy", [0, 1, 2], "sums_train_CoT.npy: label 2 at 2, expected right (1) or wrong (0)"),
        ("LMllama2/sums_test_nan.npy", [[True]], "sums_test_nan.npy: an array of 2 dimensions"),
        ("LMllama2/sums_train_nan.npy", ["True"], "labels of the type <U4"),
        ("LMllama2/sums_train_nan.npy", [True] * 9, "5 texts of queries, and 11 queries were logged"),
        ("critics/Processed_llama_sums_prompt_1_confidence.npy", [0.5], "(1,) of float64, expected 2 numbers"),
        ("critics/Processed_llama_sums_prompt_1_confidence.npy", [0.5, -1], "confidence -1, expected a number from 0"),
    ],
)
def test_arrays_that_do_not_fit_are_told(release: Release, name: str, values: ArrayLike, told: str) -> None:
    np.save(release[0] / name, np.asarray(values))
    assert told in problem(release)


def test_an_array_that_is_pickled_is_refused(release: Release) -> None:
    np.save(release[0] / "LMllama2/sums_train_nan.npy", np.array([True, None], dtype=object), allow_pickle=True)
    assert "without pickles" in problem(release)


def test_a_critic_of_a_prompt_that_was_not_logged_is_told(release: Release) -> None:
    np.save(release[0] / "critics/Processed_llama_sums_prompt_9_confidence.npy", [0.5, 0.5])
    assert read(release).left_out == (
        "Processed_llama_sums_prompt_9_confidence.npy is of a prompt without answers, and is not used.",
    )


def test_queries_that_were_not_logged_are_told(release: Release) -> None:
    write_queries(release[1], (*QUESTIONS, "Six?", "Seven?"))
    logs = read(release)
    assert logs.queries == QUESTIONS
    assert logs.left_out == ("2 of 7 queries were not logged: the last ones.",)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "'prompts' is None, expected a list of texts"),
        ({"prompts": ["a"], "training_set": [], "test_set": ["c"]}, "'training_set' is []"),
        ({"prompts": ["a", "b"], "training_set": ["b"], "test_set": ["c"]}, "2 prompts, 1 files in training_set"),
        ({"prompts": ["a", "b"], "training_set": ["b", "b"], "test_set": ["c", "d"]}, "names a file twice"),
        ({"prompts": ["a"], "training_set": ["../../secret.npy"], "test_set": ["c"]}, "LMllama2/secret.npy is missing"),
    ],
)
def test_names_that_cannot_be_used_are_told(release: Release, names: object, told: str) -> None:
    (release[0] / "LMllama2/sums_names.json").write_text(json.dumps(names))
    assert told in problem(release)


def write_folds(folder: Path, *folds: str) -> Path:
    for number, content in enumerate(folds):
        (folder / f"fold{number}").mkdir(parents=True)
        (folder / f"fold{number}/train.csv").write_text("Question,Numbers,Answer\n" + content)
    return folder


def test_joined_folds_bring_a_question_to_both_sides(release: Release, tmp_path: Path) -> None:
    first = '"Ann has number0 pens, and number1 more?",8.0 5,13\nnumber0 and number0?,2,4\n'
    second = 'How many of number0?,3,3\n"Ann has number0 pens, and number1 more?",8.0 5,13\nWhat is number2?,1 2,9\n'
    found = Demonstrations.from_rows(read((release[0], write_folds(tmp_path / "folds", first, second), release[2])))
    assert found.queries == ("Ann has 8.0 pens, and 5 more?", "2 and 2?", "How many of 3?", "What is number2?")
    on_both = found.query_ids == 0
    assert {int(one) for one in found.splits[on_both]} == {1, 2}
    logs = read((release[0], tmp_path / "folds", release[2]))
    (note,) = logs.left_out
    assert note.startswith("1 questions have a placeholder without a number, left as it is (first: ")
    assert "fold1/train.csv:4" in note


def test_folds_are_joined_in_the_order_of_their_numbers(release: Release, tmp_path: Path) -> None:
    folder = write_folds(tmp_path / "folds", *[f"Q{number}?,1,1\n" for number in range(11)])
    logs = read((release[0], folder, release[2]))
    assert logs.queries == ("Q0?", "Q1?", "Q2?", "Q3?", "Q4?")
    for number in range(9):
        (folder / f"fold{number}/train.csv").unlink()
    assert "2 texts of queries, and 5 queries were logged" in problem((release[0], folder, release[2]))


@pytest.mark.parametrize(
    ("content", "told"),
    [("Numbers\n1\n", "no column Question"), ("Question,Numbers\n ,1\n", "train.csv:2: the question is blank")],
)
def test_folds_that_cannot_be_read_are_told(release: Release, tmp_path: Path, content: str, told: str) -> None:
    folder = write_folds(tmp_path / "folds", "")
    (folder / "fold0/train.csv").write_text(content)
    assert told in problem((release[0], folder, release[2]))
    assert "holds no fold*/train.csv" in problem((release[0], tmp_path / "copy", release[2]))


def test_one_of_several_tasks_is_named(release: Release, tmp_path: Path) -> None:
    write_release(release[0], task="words")
    with pytest.raises(DemonstrationsError, match="has the tasks sums, words: name which of them is meant"):
        read(release)
    with pytest.raises(DemonstrationsError, match="name one of them, not 'maths'"):
        read_published(release[0], queries=release[1], task="maths")
    assert len(read_published(release[0], queries=release[1], task="words")) == 10
    write_labels(tmp_path / "several/one")
    write_labels(tmp_path / "several/two")
    assert len(read_published(tmp_path / "several", task="two")) == 12
    assert len(read_published(tmp_path / "several/two", task="two")) == 12
    with pytest.raises(DemonstrationsError, match="one task alone: leave out the task 'one'"):
        read_published(tmp_path / "several/two", task="one")


def test_a_folder_without_logs_is_told(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationsError, match="has no published logs: expected"):
        read_published(tmp_path)
    with pytest.raises(DemonstrationsError, match="is no folder"):
        read_published(tmp_path / "none")
