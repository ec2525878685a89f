"""What a page about a run reads, also while another process works on it: its events from any number on, and texts."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from langgraph.store.base import BaseStore

from drpo_graph.events.schema import Event
from drpo_graph.records import Rollout
from drpo_graph.runs.reading import find_run
from drpo_graph.safety.terminal import inert
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.event_cursor import EventCursor
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import DEFAULT_CHECKPOINT, find_storage
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.run_list import RunRegistry

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_PART = 500
_MAX_REASON = 300


async def read_events(
    thread_id: str,
    since: int = 0,
    *,
    follow: bool = False,
    checkpoint: Path | str | Storage = DEFAULT_CHECKPOINT,
) -> AsyncIterator[Event]:
    """Yield a run's stored events in their order, those after number ``since`` (``Event.seq``). Nothing is written.

    A line that cannot be read is left out, and the log says so.

    Args:
        thread_id: The run.
        since: Number of the last event that is known already.
        follow: Whether to wait for further events until the run has its result, or no process works on it any more.
        checkpoint: Where the run is kept.

    Raises:
        RunNotFoundError: there is no such run.
        CheckpointError: it keeps no events, or they cannot be read.
    """
    storage = find_storage(checkpoint)
    record = await find_run(storage, check_thread_id(thread_id))
    with ExitStack() as stack:
        # Reading waits for a disk or a database; others go on meanwhile.
        opened = storage.open_events(thread_id, record.log_dir, held_as=record.held_as)
        stored = await asyncio.to_thread(stack.enter_context, opened)
        cursor = EventCursor(stored, since, skipped=_tell_skipped)
        parts = cursor.follow(is_live=follow)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            while some := await asyncio.to_thread(list, islice(part, _PART)):
                for event in some:
                    yield event
            if follow:
                await asyncio.sleep(_POLL_S)


async def read_rollouts(
    thread_id: str,
    ids: Iterable[str],
    *,
    checkpoint: Path | str | Storage = DEFAULT_CHECKPOINT,
    store: BaseStore | None = None,
) -> dict[str, Rollout]:
    """Return responses and critiques by their ids (``RolloutScored.rollout_id``). Nothing is written.

    An id is told once its texts are stored; one that is not there, as after ``drpo prune``, is left out.

    Args:
        thread_id: The run; of a graph in an app, the ``run_id`` of its events.
        ids: Those of the rollouts.
        checkpoint: Where the run is kept.
        store: In place of ``checkpoint``, the LangGraph store that a graph in an app was given.

    Raises:
        RunNotFoundError: there is no such run.
        CheckpointError: the checkpoint cannot be read.
        DamagedError: a record is not what was stored.
    """
    if store is not None:
        return await _read_rollouts(Archive(store, thread_id), ids)
    async with find_storage(checkpoint).open_for_reading() as reader:
        await RunRegistry(reader.store).find(check_thread_id(thread_id))
        return await _read_rollouts(Archive(reader.store, thread_id), ids)


async def _read_rollouts(archive: Archive, ids: Iterable[str]) -> dict[str, Rollout]:
    found = {one: await archive.record("rollouts", one, Rollout) for one in ids}
    return {one: rollout for one, rollout in found.items() if rollout is not None}


def _tell_skipped(why: str) -> None:
    logger.warning("skipped a line that is no event: %s", inert(why, max_chars=_MAX_REASON))
