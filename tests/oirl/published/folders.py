"""Writes small folders of published logs, in both of their layouts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

PROMPTS = ("The answer is:", "Think: ", "Look: ")
"""Two that were trained on, and one that was held out."""
NAMES = ("nan", "CoT", "gpt4_0")
QUESTIONS = ("One?", "Two?", "Three?", "Four?", "Five?")
"""Three of the training side, and two of the other."""
TRAIN = ((1, 0, 1), (0, 0, 1))
"""By prompt."""
TEST = ((1, 1), (0, 1))
HELD_OUT = (0, 1)


def write_labels(folder: Path, *, leave_out: Sequence[str] = (), **changes: ArrayLike) -> Path:
    """Write a folder of labels, with some arrays of ``labels.npz`` changed or left out."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "queries.jsonl", [{"id": str(n), "question": text} for n, text in enumerate(QUESTIONS)])
    prompts = [{"index": n, "name": NAMES[n], "text": text} for n, text in enumerate(PROMPTS)]
    # Their order in the file says nothing.
    (folder / "prompts.json").write_text(json.dumps(prompts[::-1]))
    labels = np.full((5, 3), -1, dtype=np.int8)
    labels[:3, :2], labels[3:, :2], labels[3:, 2] = np.transpose(TRAIN), np.transpose(TEST), HELD_OUT
    arrays: dict[str, ArrayLike] = {
        "labels": labels,
        "row_query": np.arange(5, dtype=np.int32),
        "row_split": np.array([0, 0, 0, 1, 1], dtype=np.int8),
        "prompt_names": np.array(NAMES),
        **changes,
    }
    np.savez(folder / "labels.npz", **{name: np.asarray(one) for name, one in arrays.items() if name not in leave_out})
    return folder


def write_release(folder: Path, *, task: str = "sums") -> Path:
    """Write a copy of the repository with one task."""
    labels, results, critics = folder / "LMllama2", folder / "llama_results" / task, folder / "critics"
    for one in (labels, results, critics):
        one.mkdir(parents=True, exist_ok=True)
    for alias, train, test in zip(NAMES, TRAIN, TEST, strict=False):
        np.save(labels / f"{task}_train_{alias}.npy", np.array(train, dtype=bool))
        np.save(labels / f"{task}_test_{alias}.npy", np.array(test, dtype=bool))
        write_answers(results / f"llama_{task}_corr_{alias}.txt", dict(enumerate((*train, *test))))
    write_answers(results / f"llama_{task}_corr_gpt4_0.txt", dict(enumerate(HELD_OUT)))
    names = {
        "prompts": PROMPTS[:2],
        "training_set": [f"LMllama2/{task}_train_{alias}.npy" for alias in NAMES[:2]],
        "test_set": [f"LMllama2/{task}_test_{alias}.npy" for alias in NAMES[:2]],
    }
    (labels / f"{task}_names.json").write_text(json.dumps(names))
    for index in range(3):
        np.save(critics / f"Processed_llama_{task}_prompt_{index}_critic.npy", np.ones(2))
        np.save(critics / f"Processed_llama_{task}_prompt_{index}_confidence.npy", np.array([0.1, 0.9]) / (index + 1))
    return folder


def write_answers(path: Path, answers: Mapping[int, int]) -> None:
    """Write answers as lines, by their query's number."""
    path.write_text("".join(f"({place}, {bool(one)})\n" for place, one in answers.items()))


def write_lines(path: Path, records: Sequence[object]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def write_queries(path: Path, texts: Sequence[str] = QUESTIONS) -> Path:
    """Write a file of queries in the logs' order."""
    return write_lines(path, [{"question": text} for text in texts])


def write_held_out(path: Path) -> Path:
    """Write a file with the text of the held-out prompt."""
    path.write_text(json.dumps([PROMPTS[2]]))
    return path
