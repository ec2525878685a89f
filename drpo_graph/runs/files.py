"""The files of a run, in the published names and forms and our own. Replaced atomically, logs appended."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from drpo_graph.errors import CheckpointError
from drpo_graph.records import Candidate, RunResult, mean
from drpo_graph.runs.reading import Salvaged
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.terminal import inert_json
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.run_list import RunRecord
from drpo_graph.storage.tree import load_tree

RESULT_FILE = "result.json"
RUN_FILE = "run.json"
PROMPT_FILE = "best_prompt.txt"
ALGORITHM_FOLDER = "algo_output"
_TREE_FILE = f"{ALGORITHM_FOLDER}/tree.json"


def write_result_files(folder: Path, result: RunResult, tree: Sequence[Candidate]) -> list[Path]:
    """Write a finished run's files and return their paths, the most wanted first.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    by_id = {one.id: one for one in tree}
    trace = [by_id[one] for one in result.trace]
    levels = {f"level {number}": describe_level(candidate) for number, candidate in enumerate(trace, 1)}
    stored_result = result.model_dump(mode="json")
    stored_tree = [candidate.model_dump(mode="json") for candidate in tree]
    # Plain builtins only: it loads without this package, and without trusting it. By way of JSON, because a pickle
    # also holds which objects are one, and equal results should be equal bytes.
    plain = json.loads(json.dumps({"result": stored_result, "tree": stored_tree}))
    contents = {
        PROMPT_FILE: _to_text(f"{result.system_prompt}\n"),
        RESULT_FILE: _to_json(stored_result),
        f"{ALGORITHM_FOLDER}/output.json": _to_json(levels),
        f"{ALGORITHM_FOLDER}/trace.txt": _to_text(
            "\n\n".join(f"Level {number}:\n{one.prompt}" for number, one in enumerate(trace, 1))
        ),
        _TREE_FILE: _to_json(stored_tree),
        f"{ALGORITHM_FOLDER}/output.pkl": pickle.dumps(plain, protocol=4),
    }
    return write_files(folder, contents, advice=advise_resume(result.thread_id))


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
    contents = {RUN_FILE: _to_json(record.model_dump(mode="json"))}
    if result is None:
        best_id = beams[-1][0] if beams and beams[-1] else None
        best = [candidate.prompt for candidate in tree if candidate.id == best_id] or [record.settings.initial_prompt]
        contents[PROMPT_FILE] = _to_text(f"{best[0]}\n")
        contents[_TREE_FILE] = _to_json([one.model_dump(mode="json") for one in tree])
    written = write_files(folder, contents, what="Folder", advice="Give another one with --output.")
    return written if result is None else [*write_result_files(folder, result, tree), *written]


def write_salvaged(folder: Path, run: Salvaged) -> list[Path]:
    """Write what could be read of a damaged run: its record, its result, its tree, and the best prompt among these.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    contents = {_TREE_FILE: _to_json([one.model_dump(mode="json") for one in run.tree])}
    if run.record is not None:
        contents[RUN_FILE] = _to_json(run.record.model_dump(mode="json"))
    if run.result is not None:
        contents[RESULT_FILE] = _to_json(run.result.model_dump(mode="json"))
    by_id = {one.id: one for one in run.tree}
    best = max(run.tree, key=lambda one: (one.path_reward or 0, -one.depth), default=None)
    best = next((by_id[one] for beam in reversed(run.beams) for one in beam if one in by_id), best)
    if run.result is not None or best is not None:
        contents[PROMPT_FILE] = _to_text(f"{run.result.system_prompt if run.result else best and best.prompt}\n")
    return write_files(folder, contents, what="Folder", advice="Give another one with --output.")


def write_files(folder: Path, contents: Mapping[str, bytes], *, advice: str, what: str = "Run folder") -> list[Path]:
    """Write files by their names below a folder, and return their paths.

    Raises:
        CheckpointError: the folder cannot be written; it says what the folder is, and the advice.
    """
    try:
        for name, content in contents.items():
            write_atomically(folder / name, content, root=folder)
    except OSError as error:
        raise CheckpointError(f"{what} {folder}: {error.strerror or error}. {advice}") from error
    return [folder / name for name in contents]


def advise_resume(thread_id: str) -> str:
    """Return what to do where a finished run's files cannot be written."""
    return (
        f"The result is stored: make room there and run `drpo resume {thread_id}`, or give another folder with "
        "--log-dir."
    )


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
