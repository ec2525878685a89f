"""The files of a run, in the published names and forms and our own. Replaced atomically, logs appended."""

import json
import logging
import os
import pickle
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError

from drpo_graph.archive import Archive
from drpo_graph.emitter import EventSink
from drpo_graph.errors import CheckpointError
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
    """Return every candidate of a run in creation order, with its rollouts and, where its level is scored, rewards.

    A candidate's rollouts are those on its level's queries, in their order; a contender's rollouts on held-out queries
    are in the result's validation.
    """
    scores = await archive.scores_by_candidate()
    queries_by_level = {
        int(level): [str(one) for one in stored["query_ids"]]
        for level, stored in (await archive.get_all("levels")).items()
        if isinstance(stored["query_ids"], list)
    }
    stored_rollouts: dict[str, dict[str, JsonValue]] = {}
    for key, stored_rollout in sorted((await archive.get_all("rollouts")).items()):
        candidate_id, _, query_id = key.partition("/")
        stored_rollouts.setdefault(candidate_id, {})[query_id] = dict(stored_rollout)
    candidates = []
    for candidate_id, stored in (await archive.get_all("candidates")).items():
        reward, path_reward = scores.get(candidate_id, (None, None))
        own = stored_rollouts.get(candidate_id, {})
        # A level that is not scored yet has no record of its queries.
        query_ids = queries_by_level.get(creation_order(candidate_id)[0], list(own))
        fields = {
            **stored,
            "rollouts": [own[query_id] for query_id in query_ids if query_id in own],
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
            write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"Run folder {folder}: {error.strerror or error}. The result is stored: make room there and run "
            f"`drpo resume {result.thread_id}`, or give another folder with --log-dir."
        ) from error
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
            "score": f"{mean([score for score, _ in given]):.3g}",
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
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def open_run_files(folder: Path | None, settings: Settings, *, log_level: str) -> Iterator[tuple[EventSink, ...]]:
    """Open a run's log and event files, and give what writes to them; without a folder only the log is told.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    if folder is None:
        yield (log_event,)
        return
    try:
        append_settings(folder, settings)
        events = EventLog(folder / EVENTS_FILE)
        handler = LogFile(folder / LOG_FILE, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"Run folder {folder}: {error.strerror or error}. Give another one with --log-dir, or none with "
            "--disable-log."
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(log_level)
    package_logger = logging.getLogger("drpo_graph")
    former_level = package_logger.level
    package_logger.setLevel(min(handler.level, former_level or handler.level))
    package_logger.addHandler(handler)
    try:
        yield (events, log_event)
    finally:
        package_logger.removeHandler(handler)
        package_logger.setLevel(former_level)
        handler.close()
        events.close()


class EventLog:
    """Appends each event to a file as it happens, one line each: what was written survives a killed process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        # Without a buffer: what cannot be written is not kept for later, to fail once more when the file is closed.
        self._file = path.open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        """Append one event.

        Raises:
            CheckpointError: it cannot be written.
        """
        line = memoryview(event_line(event))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise CheckpointError(
                f"Event log {self._file.name}: {error.strerror or error}. Free space and run `drpo resume`: what was "
                "committed is kept."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LogFile(logging.FileHandler):
    """Appends to ``log.txt``; a line that cannot be written is lost, and no reason to fill the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # The name is logging's.
        """Do nothing."""

    def close(self) -> None:
        """Close the file, whether or not its last lines can be written."""
        with suppress(OSError):
            super().close()


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
                "-" if best is None or best.path_reward is None else f"{best.path_reward:.2f}",
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


def event_line(event: Event) -> bytes:
    """Return an event as a line of the event log."""
    try:
        return f"{event.model_dump_json()}\n".encode()
    except PydanticSerializationError:
        # A lone surrogate in a model's reply, which UTF-8 cannot hold: an escape says the same.
        return f"{json.dumps(event.model_dump(), separators=(',', ':'))}\n".encode()


def _to_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _to_json(value: object) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")
