"""The files of a run, in the published names and forms and our own. Replaced atomically, logs appended."""

import io
import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError

from drpo_graph.errors import CheckpointError
from drpo_graph.events.emitter import EventSink
from drpo_graph.events.schema import (
    CallFinished,
    CallRetried,
    EndpointBack,
    EndpointLost,
    Event,
    LevelFinished,
    RunStopped,
    Warned,
)
from drpo_graph.records import Candidate, RunResult, mean
from drpo_graph.safety.encryption import Vault
from drpo_graph.safety.private_files import open_to_append, write_atomically
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.terminal import inert, inert_block, inert_json
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.run_list import RunRecord

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
SEALED_EVENTS_FILE = "events.jsonl.sealed"
LOG_FILE = "log.txt"
RESULT_FILE = "result.json"
RUN_FILE = "run.json"
PROMPT_FILE = "best_prompt.txt"
ARGS_FILE = "args.txt"
ALGORITHM_FOLDER = "algo_output"
_PLAIN_NAMES = (PROMPT_FILE, RESULT_FILE, EVENTS_FILE, LOG_FILE, ARGS_FILE, ALGORITHM_FOLDER)
_MAX_LOGGED = 20_000


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


def append_settings(folder: Path, settings: Settings) -> None:
    """Add the run's settings to ``args.txt``: once at its start, once more at each resume.

    Raises:
        OSError: the folder cannot be written.
    """
    with open(open_to_append(folder / ARGS_FILE), "a", encoding="utf-8") as file:
        for name, value in settings.model_dump(mode="json").items():
            file.write(f"{name}: {inert_json(json.dumps(value, ensure_ascii=False))}\n")
        file.write("\n")


@contextmanager
def open_run_files(
    folder: Path | None, settings: Settings, *, log_level: str, vault: Vault | None = None
) -> Iterator[tuple[EventSink, ...]]:
    """Open a run's log and event files, and give what writes to them; without a folder only the log is told.

    With a vault the events are sealed, and nothing else is written; what is there unsealed is told.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    if folder is None:
        yield (log_event,)
        return
    if vault is not None:
        plain = [name for name in _PLAIN_NAMES if (folder / name).exists()]
        if plain:
            logger.warning("%s holds files of this run that are not encrypted: %s.", folder, ", ".join(plain))
        with _explained(folder):
            events = EventLog(folder / SEALED_EVENTS_FILE, vault)
        try:
            yield (events,)
        finally:
            events.close()
        return
    with _explained(folder):
        append_settings(folder, settings)
        events = EventLog(folder / EVENTS_FILE)
        handler = LogFile(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(InertFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # A path with a NUL in it is a ValueError.
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"Run folder {folder}: {reason}. Give another one with --log-dir, or none with --disable-log."
        ) from error


class EventLog:
    """Appends each event to a file as it happens, one line each: what was written survives a killed process.

    Args:
        path: The file.
        vault: Seals each line, if given.
    """

    def __init__(self, path: Path, vault: Vault | None = None) -> None:
        self._vault = vault
        # Without a buffer: what cannot be written is not kept for later, to fail once more when the file is closed.
        self._file = open(open_to_append(path), "ab", buffering=0)  # noqa: SIM115  # Closed by close().
        self._path = path
        _end_last_line(self._file.fileno())

    def __call__(self, event: Event) -> None:
        """Append one event.

        Raises:
            CheckpointError: it cannot be written.
        """
        line = memoryview(event_line(event, self._vault))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise CheckpointError(
                f"Event log {self._path}: {error.strerror or error}. Free space and run `drpo resume`: what was "
                "committed is kept."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_event_line(line: str, vault: Vault | None, *, thread_id: str) -> str:
    """Return a line of a run's event log as JSON; those of a sealed one need its vault.

    Raises:
        CheckpointError: it does not open.
    """
    return (
        line if vault is None else vault.open(line.strip(), place=_events_place(thread_id)).decode("utf-8", "replace")
    )


class InertFormatter(logging.Formatter):
    """Formats each record free of keys and of what a terminal would obey, its message on one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # The name is logging's.
        """Return the record's first line: a model's text cannot pose as a line of its own."""
        record.message = inert(record.message, max_chars=_MAX_LOGGED)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with its traceback, if it has one."""
        return inert_block(redact(super().format(record)), max_chars=_MAX_LOGGED)


class LogFile(logging.FileHandler):
    """Appends to ``log.txt``; a line that cannot be written is lost, and no reason to fill the terminal."""

    def _open(self) -> io.TextIOWrapper:
        return open(open_to_append(Path(self.baseFilename)), "a", encoding=self.encoding, errors="backslashreplace")

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
            # Without a run folder it may end on the terminal.
            logger.warning("%s", inert(event.message, max_chars=_MAX_LOGGED))
        case EndpointLost():
            detail = inert(event.detail, max_chars=_MAX_LOGGED)
            logger.warning("%s is lost (%s: %s); calls wait for it", event.endpoint, event.kind, detail)
        case EndpointBack():
            logger.warning("%s is back after %.1f s", event.endpoint, event.lost_s)
        case RunStopped():
            logger.warning("stopped (%s): %s", event.reason, inert(event.message, max_chars=_MAX_LOGGED))
        case CallRetried():
            logger.info("%s call failed (%s), try %s in %s s", event.role, event.kind, event.attempt + 1, event.wait_s)
        case CallFinished():
            logger.debug("%s call %s took %s s", event.role, event.key[:12], event.duration_s)


def _end_last_line(descriptor: int) -> None:
    """Close a line that a killed process left open, so that the next event begins one of its own."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def event_line(event: Event, vault: Vault | None = None) -> bytes:
    """Return an event as a line of the event log, sealed if there is a vault."""
    try:
        line = f"{inert_json(event.model_dump_json())}\n".encode()
    except PydanticSerializationError:
        # A lone surrogate in a model's reply, which UTF-8 cannot hold: an escape says the same.
        line = f"{json.dumps(event.model_dump(), separators=(',', ':'))}\n".encode()
    return line if vault is None else f"{vault.seal(line, place=_events_place(event.run_id))}\n".encode()


def _events_place(thread_id: str) -> str:
    return f"events/{thread_id}"


def _to_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _to_json(value: object) -> bytes:
    return f"{inert_json(json.dumps(value, indent=2, ensure_ascii=False))}\n".encode("utf-8", "backslashreplace")
