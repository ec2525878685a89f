"""The files of a run, in the published names and forms and our own. Replaced atomically, logs appended."""

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from drpo_graph.archive import Archive
from drpo_graph.events import CallFinished, CallRetried, Event, LevelFinished, RunStopped, Warned
from drpo_graph.records import Candidate, RunResult, mean
from drpo_graph.settings import Settings

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
LOG_FILE = "log.txt"
RESULT_FILE = "result.json"
PROMPT_FILE = "best_prompt.txt"
ARGS_FILE = "args.txt"
ALGORITHM_FOLDER = "algo_output"


async def load_tree(archive: Archive) -> tuple[Candidate, ...]:
    """Return every candidate of a run in creation order, with its rollouts and, where its level is scored, rewards."""
    scores = await archive.scores_by_candidate()
    rollouts: dict[str, list[JsonValue]] = {}
    for key, stored_rollout in sorted((await archive.get_all("rollouts")).items()):
        rollouts.setdefault(key.split("/", 1)[0], []).append(dict(stored_rollout))
    candidates = []
    for candidate_id, stored in (await archive.get_all("candidates")).items():
        reward, path_reward = scores.get(candidate_id, (None, None))
        fields = {
            **stored,
            "rollouts": rollouts.get(candidate_id, []),
            "reward": reward,
            "path_reward": path_reward,
        }
        candidates.append(Candidate.model_validate(fields))
    return tuple(sorted(candidates, key=lambda one: creation_order(one.id)))


def creation_order(candidate_id: str) -> tuple[int, ...]:
    """Return a key that sorts candidate ids as the search created them."""
    return tuple(int(part) for part in candidate_id.split("."))


def write_result_files(folder: Path, result: RunResult, tree: Sequence[Candidate]) -> list[Path]:
    """Write a finished run's files and return their paths, the most wanted first.

    Raises:
        OSError: the folder cannot be written.
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
        folder / PROMPT_FILE: f"{result.system_prompt}\n".encode(),
        folder / RESULT_FILE: _to_json(result.model_dump(mode="json")),
        algorithm / "output.json": _to_json(levels),
        algorithm / "trace.txt": "\n\n".join(f"Level {n}:\n{one.prompt}" for n, one in enumerate(trace, 1)).encode(),
        algorithm / "tree.json": _to_json(everything["tree"]),
        # Plain builtins only: it loads without this package, and without trusting it.
        algorithm / "output.pkl": pickle.dumps(everything, protocol=4),
    }
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


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
            "score": f"{mean([score for score, _ in given]):g}",
        }
        for metric, given in entries.items()
    }
    return {"Prompt": candidate.prompt, "Evaluation of the prompt": evaluation}


def append_settings(folder: Path, settings: Settings) -> None:
    """Add the run's settings to ``args.txt``: once at its start, once more at each resume.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ARGS_FILE).open("a", encoding="utf-8") as file:
        for name, value in settings.model_dump(mode="json").items():
            file.write(f"{name}: {json.dumps(value, ensure_ascii=False)}\n")
        file.write("\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader or a crash sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class EventLog:
    """Appends each event to a file as it happens, one line each: what was written survives a killed process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Append one event."""
        self._file.write(f"{event.model_dump_json()}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def log_event(event: Event) -> None:
    """Tell the log what happened: a line per level, calls at DEBUG, what affects the result as a warning."""
    match event:
        case LevelFinished():
            best = event.beam[0] if event.beam else None
            logger.info(
                "level %s of %s: best %s at %s, %s children, %s unscored, %s calls so far",
                event.level,
                event.max_depth,
                best.candidate_id if best else "none",
                best.path_reward if best else None,
                event.num_children,
                event.num_unscored,
                event.usage.calls,
            )
        case Warned():
            logger.warning("%s", event.message)
        case RunStopped():
            logger.warning("stopped (%s): %s", event.reason, event.message)
        case CallRetried():
            logger.info("%s call failed (%s), try %s in %s s", event.role, event.kind, event.attempt + 1, event.wait_s)
        case CallFinished():
            logger.debug("%s call %s took %s s", event.role, event.key[:12], event.duration_s)


def _end_last_line(path: Path) -> None:
    """Close a line that a killed process left open, so that the next event begins one of its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _to_json(value: object) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()
