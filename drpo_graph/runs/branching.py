"""From which levels a run can be forked, and what of it a fork begins with.

A fork begins where all answers of a level are scored and its beam is not chosen yet: the new settings choose it. It has
the former run's texts up to that level, and nothing after it; of its finished calls it has all, as calls that cost it
nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from pydantic import JsonValue

from drpo_graph.calls.ledger import mark_inherited
from drpo_graph.errors import StateFormatError, UsageError
from drpo_graph.graph import SearchGraph
from drpo_graph.search.state import STATE_FORMAT, SearchState
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive, Kind

_SCORING = "score_beams"
_BEFORE_SCORING = "expand"
"""A node after which the level is scored."""
_RUN_RECORDS = ("order", "input", "warm_start")
_BATCH = 500

_Value = Mapping[str, JsonValue]


async def find_level(graph: SearchGraph, thread_id: str, level: int) -> SearchState:
    """Return a run's state at the end of a level, before its beam is chosen.

    Args:
        graph: The search, with the checkpointer that keeps the run.
        thread_id: The run.
        level: The level; 0 is the evaluation of the initial prompt.

    Raises:
        UsageError: there is no checkpoint of it; the message lists the levels of which there are.
        StateFormatError: another version of drpo_graph made it.
    """
    found: dict[int, SearchState] = {}
    async for snapshot in graph.aget_state_history({"configurable": {"thread_id": thread_id}}):
        if any(task.name == _SCORING for task in snapshot.tasks):
            # The newest comes first: of a level that was run again, its last round counts.
            found.setdefault(snapshot.values["level"], cast(SearchState, snapshot.values))
    if level not in found:
        listed = ", ".join(map(str, sorted(found)))
        there_are = (
            f"there are those of levels {listed}" if found else "there is none of any: it was pruned or scored nothing"
        )
        raise UsageError(f"Run {thread_id!r} has no checkpoint of the end of level {level}; {there_are}.")
    if found[level].get("format") != STATE_FORMAT:
        raise StateFormatError(
            f"Run {thread_id!r} has state format {found[level].get('format')!r}, this version reads {STATE_FORMAT}. "
            "Fork it with the version that started it."
        )
    return found[level]


async def begin_thread(
    graph: SearchGraph, thread_id: str, state: SearchState, *, settings: Settings, fingerprints: Mapping[str, str]
) -> None:
    """Save a state as the beginning of a new thread, to be gone on with under other settings.

    Args:
        graph: The search, with the checkpointer that keeps the new run.
        thread_id: The new run.
        state: What :func:`find_level` returned.
        settings: The new run's.
        fingerprints: The new run's, of settings, prompts and parts.
    """
    values: dict[str, Any] = {
        **state,
        "run_id": thread_id,
        "fingerprints": {**state["fingerprints"], **fingerprints},
        "max_depth": settings.num_levels + state["num_increases"],
        # What the user let the former run ask again is settled: the fork's ledger holds the replies.
        "num_asked_again": 0,
        "forked_level": state["level"],
    }
    await graph.aupdate_state({"configurable": {"thread_id": thread_id}}, values, as_node=_BEFORE_SCORING)


async def copy_records(source: Archive, target: Archive, state: SearchState) -> None:
    """Give a fork the records of the former run that its state names, and its finished calls.

    Args:
        source: The former run's records.
        target: The fork's.
        state: Where the fork begins.
    """
    level, held_out = state["level"], set(state["validation_ids"])
    seen: set[str] = set()

    def is_before(key: str, value: _Value) -> bool:
        query_id = str(value["query_id"])
        is_kept = _level_in(key) <= level and query_id not in held_out
        if is_kept:
            seen.add(query_id)
        return is_kept

    keep_by_kind: dict[Kind, Callable[[str, _Value], bool]] = {
        "run": lambda key, _: key in _RUN_RECORDS,
        "queries": lambda _, __: True,
        "learned": lambda _, __: True,
        "capabilities": lambda _, __: True,
        # Each names what it was retrieved with: another choice of the fork's finds its own.
        "examples": lambda _, __: True,
        "responses": lambda _, __: True,
        "candidates": lambda key, _: _level_in(key) <= level,
        "expansions": lambda key, _: _level_in(key) <= level,
        "rollouts": is_before,
        # Its own record is written as the fork scores it, and its own review comes after that.
        "reviews": lambda key, _: int(key) < level,
        "levels": lambda key, _: int(key) < level,
        # After the rollouts: metrics that were selected for later queries are the former settings' choice.
        "metrics": lambda key, _: key in seen,
    }
    for kind, keeps in keep_by_kind.items():
        await _put(
            target, kind, {key: value for key, value in (await source.get_all(kind)).items() if keeps(key, value)}
        )
    await _put(target, "calls", {key: mark_inherited(value) for key, value in (await source.get_all("calls")).items()})


async def _put(target: Archive, kind: Kind, records: Mapping[str, _Value]) -> None:
    for batch in _batches(records):
        await target.put_all(kind, batch)


def _batches(records: Mapping[str, _Value]) -> Iterator[dict[str, _Value]]:
    left = iter(records.items())
    while batch := dict(islice(left, _BATCH)):
        yield batch


def _level_in(key: str) -> int:
    """Return the level in the key of a candidate, of its rollouts, or of its children: what is before the first dot."""
    return int(key.partition("/")[0].partition(".")[0])
