"""What a run is called, wherever a graph runs it, and what its thread holds of it."""

import hashlib
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from pydantic import JsonValue

from drpo_graph.records import digest_json
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.checkpoint_store import CheckpointStore

_UNNAMED_RUN = "run"

CHECKPOINTER = "__pregel_checkpointer"
"""What LangGraph tells its nodes of the checkpointer under, and under no public name."""

_REPLAY = "__pregel_replay_state"
"""What LangGraph tells graphs in one that goes on from an earlier checkpoint under."""


SAVER_AROUND: ContextVar[BaseCheckpointSaver[Any] | None] = ContextVar("_saver", default=None)
"""The checkpointer of the graph around the one that runs."""


def find_saver() -> BaseCheckpointSaver[Any] | None:
    """Return the checkpointer of the graph that runs the node that asks, its own or that of a graph around it."""
    found = get_config().get("configurable", {}).get(CHECKPOINTER)
    return found if isinstance(found, BaseCheckpointSaver) else None


def find_store(state: Mapping[str, Any]) -> BaseStore | None:
    """Return a store beside the checkpoints, where there are any, and where nobody has given a store."""
    saver, thread_id = find_saver() or SAVER_AROUND.get(), get_config().get("configurable", {}).get("thread_id")
    if saver is None or not thread_id:
        return None
    return CheckpointStore(saver, thread_id=str(thread_id), run_id=state.get("run_id") or derive_run_id())


def derive_run_id() -> str:
    """Return the thread's id; inside a parent graph, with a mark of the place that the parent runs this graph at.

    A run without either gets an id that no other has.
    """
    configurable = get_config().get("configurable", {})
    # Our own task is the last part of the namespace; what is before it is the parent's task, stable over resumes.
    place = "|".join(str(configurable.get("checkpoint_ns", "")).split("|")[:-1])
    thread_id = configurable.get("thread_id")
    if not thread_id and not place:
        # Nothing can resume it, and its records may be kept beside those of a former call: it must not find them.
        return f"{_UNNAMED_RUN}-{secrets.token_hex(8)}"
    return _name_run(str(thread_id or _UNNAMED_RUN), place)


def _name_run(thread_id: str, place: str) -> str:
    return f"{thread_id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}" if place else thread_id


async def find_state(run_id: str) -> Mapping[str, Any] | None:
    """Return the stored state of the graph that works for a run, from any node in it; ``None`` where there is none."""
    saver, configurable = find_saver() or SAVER_AROUND.get(), get_config().get("configurable", {})
    thread_id = str(configurable.get("thread_id") or "")
    if saver is None or not thread_id:
        return None
    parts = str(configurable.get("checkpoint_ns", "")).split("|")
    for place in ("|".join(parts[:number]) for number in reversed(range(len(parts)))):
        name = _name_run(thread_id, place)
        if run_id == name or run_id.startswith(f"{name}-"):
            found = await saver.aget_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": place}})
            return None if found is None else found.checkpoint["channel_values"]
    return None


async def open_run(runtime: Runtime[RunContext], start: dict[str, JsonValue]) -> RunSession:
    """Return the session of the run that starts from this.

    A thread may be given something else to start from after its run has ended. That is a run of its own, and must not
    find the answers of the former one; a start that was interrupted finds what it has laid down. A parent that goes on
    from an earlier checkpoint finds the run that it had made of the same start.
    """
    digest, place = digest_json(start), _describe_place()
    run_id = derive_run_id()
    if place:
        run_id = await _find_former(runtime.context.archive_of(place, runtime.store), digest) or run_id
    session = await session_of(runtime, run_id)
    if await session.archive.get("run", "start") not in (None, start):
        session = await session_of(runtime, f"{run_id}-{digest[:8]}")
    await session.archive.put("run", "start", start)
    return session


async def _find_former(seen: Archive, digest: str) -> str | None:
    """Return the run that was made of this start next after the checkpoint that a parent goes on from, if it does.

    LangGraph gives the parent's task another id than it had then. What is made now is noted for a later such time.
    """
    configurable = get_config()["configurable"]
    now, replay = configurable.get("checkpoint_map", {}).get("", ""), configurable.get(_REPLAY)
    former = None
    if replay is not None:
        noted = {key.partition("/"): one["id"] for key, one in (await seen.get_all("run")).items()}
        since = str(getattr(replay, "checkpoint_id", ""))
        # Checkpoints are named by their time.
        later = {at: str(run_id) for (start, _, at), run_id in noted.items() if start == digest and at >= since}
        former = later[min(later)] if later else None
    await seen.put("run", f"{digest}/{now}", {"id": former or derive_run_id()})
    return former


def _describe_place() -> str:
    """Return an id of the place that a parent with a thread runs this graph at, or nothing."""
    configurable = get_config().get("configurable", {})
    names: list[JsonValue] = [
        part.partition(":")[0] for part in str(configurable.get("checkpoint_ns", "")).split("|")[:-1]
    ]
    thread_id = configurable.get("thread_id")
    return f"{thread_id}-at-{digest_json(names)[:8]}" if names and thread_id else ""
