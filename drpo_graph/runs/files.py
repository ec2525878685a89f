"""The files of a run, in the published names and forms and our own. Replaced atomically, logs appended."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from drpo_graph.errors import CheckpointError
from drpo_graph.records import Candidate, RunResult, mean
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.terminal import inert_json
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.run_list import RunRecord
from drpo_graph.storage.tree import load_tree

RESULT_FILE = "result.json"
RUN_FILE = "run.json"
PROMPT_FILE = "best_prompt.txt"
ALGORITHM_FOLDER = "algo_output"


def write_result_files(folder: Path, result: RunResult, tree: Sequence[Candidate]) -> list[Path]:
    """Write a finished run's files and return their paths, the most wanted first.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    by_id = {one.id: one for one in tree}
    trace = [by_id[one] for one in result.trace]
    levels = {f"level {number}": describe_level(candidate) for number, candidate in enumerate(trace, 1)}
    algorithm = folder / ALGORITHM_FOLDER
    everything: dict[str, object] = {
        "result": result.model_dump(mode="json"),
        "tree": [candidate.model_dump(mode="json") for candidate in tree],
    }
    files = {
        folder / PROMPT_FILE: _to_text(f"{result.system_prompt}\n"),
        folder / RESULT_FILE: _to_json(result.model_dump(mode="json")),
        algorithm / "output.json": _to_json(levels),
        algorithm / "trace.txt": _to_text("\n\n".join(f"Level {n}:\n{one.prompt}" for n, one in enumerate(trace, 1))),
        algorithm / "tree.json": _to_json(everything["tree"]),
        # Plain builtins only: it loads without this package, and without trusting it. By way of JSON, because a pickle
        # also holds which objects are one, and equal results should be equal bytes.
        algorithm / "output.pkl": pickle.dumps(json.loads(json.dumps(everything)), protocol=4),
    }
    try:
        for path, content in files.items():
            write_atomically(path, content, root=folder)
    except OSError as error:
        raise CheckpointError(
            f"Run folder {folder}: {error.strerror or error}. The result is stored: make room there and run "
            f"`drpo resume {result.thread_id}`, or give another folder with --log-dir."
        ) from error
    return list(files)


async def export_result(archive: Archive, folder: Path, result: RunResult) -> None:
    """Write a finished run's files, unless they are there and tell more than what was kept of the run.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    if await archive.get("run", "pruned") is None or not (folder / RESULT_FILE).is_file():
        write_result_files(folder, result, await load_tree(archive))


def write_stored_run(
    folder: Path,
    record: RunRecord,
    *,
    result: RunResult | None,
    tree: Sequence[Candidate],
    beams: Sequence[Sequence[str]],
) -> list[Path]:
    """Write what a checkpoint holds of a run, finished or not, and return the files' paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        write_atomically(folder / RUN_FILE, _to_json(record.model_dump(mode="json")))
        if result is not None:
            return [*write_result_files(folder, result, tree), folder / RUN_FILE]
        best_id = beams[-1][0] if beams and beams[-1] else None
        best = [candidate.prompt for candidate in tree if candidate.id == best_id] or [record.settings.initial_prompt]
        files = {
            folder / PROMPT_FILE: _to_text(f"{best[0]}\n"),
            folder / ALGORITHM_FOLDER / "tree.json": _to_json([one.model_dump(mode="json") for one in tree]),
        }
        for path, content in files.items():
            write_atomically(path, content, root=folder)
    except OSError as error:
        raise CheckpointError(f"Folder {folder}: {error.strerror or error}. Give another one with --output.") from error
    return [*files, folder / RUN_FILE]


def describe_level(candidate: Candidate) -> dict[str, JsonValue]:
    """Return a candidate in the form of the published ``output.json``; scores are texts there.

    With several queries per level a metric's score is the mean of its scores, and its rationale holds all of them.
    """
    entries: dict[str, list[tuple[float, str]]] = {}
    for rollout in candidate.rollouts:
        for score in rollout.critique.scores if rollout.critique else ():
            remark = score.rationale if len(candidate.rollouts) == 1 else f"[{rollout.query_id}] {score.rationale}"
            entries.setdefault(score.metric, []).append((score.score, remark))
    evaluation: dict[str, JsonValue] = {
        metric: {
            "rationale": "\n".join(remark for _, remark in given),
            "score": f"{mean([score for score, _ in given]):.3g}",
        }
        for metric, given in entries.items()
    }
    return {"Prompt": candidate.prompt, "Evaluation of the prompt": evaluation}


def _to_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _to_json(value: object) -> bytes:
    return f"{inert_json(json.dumps(value, indent=2, ensure_ascii=False))}\n".encode("utf-8", "backslashreplace")
