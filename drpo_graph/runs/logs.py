"""A run's log file, and what is said in it."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from drpo_graph.errors import CheckpointError
from drpo_graph.events.emitter import EventSink
from drpo_graph.events.log import EVENTS_FILE, SEALED_EVENTS_FILE, EventLog
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
from drpo_graph.runs.files import ALGORITHM_FOLDER, PROMPT_FILE, RESULT_FILE
from drpo_graph.safety.encryption import Vault
from drpo_graph.safety.private_files import open_to_append
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.terminal import inert, inert_block, inert_json
from drpo_graph.search.announce import ROLLOUT_LOGGER
from drpo_graph.settings.settings import Settings

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
ARGS_FILE = "args.txt"
_MAX_LOGGED = 20_000
_PLAIN_NAMES = (PROMPT_FILE, RESULT_FILE, EVENTS_FILE, LOG_FILE, ARGS_FILE, ALGORITHM_FOLDER)


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
    folder: Path | None, settings: Settings, *, run_id: str = "", log_level: str, vault: Vault | None = None
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
        with closing(events):
            yield (events,)
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
    handler.addFilter(lambda record: getattr(record, "run_id", run_id) == run_id)
    ROLLOUT_LOGGER.addHandler(handler)
    try:
        yield (events, log_event)
    finally:
        ROLLOUT_LOGGER.removeHandler(handler)
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
