"""Fork a run: branch it with other settings from the state that it had after a level, without paying for it again."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import JsonValue

from drpo_graph.calls.ledger import mark_inherited
from drpo_graph.errors import StateFormatError, UsageError
from drpo_graph.graph import SearchGraph, build_graph
from drpo_graph.parts.rewards import check_named_again
from drpo_graph.parts.screens import check_screen
from drpo_graph.records import RunResult
from drpo_graph.runs.beginnings import check_is_new, make_record
from drpo_graph.runs.runner import resume
from drpo_graph.runs.work import RunOptions
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.state import STATE_FORMAT, SearchState
from drpo_graph.settings.layers import build_settings, merge_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive, Kind
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.retention import prune_run
from drpo_graph.storage.run_list import RunRecord, RunRegistry

REASON_BY_FIXED_SETTING: Mapping[str, str] = {
    "initial_prompt": "it was scored before the fork begins; start a new run with it",
    "num_queries": "the run's queries were drawn when it began",
    "compat": "the published search counts levels and rewards by other rules",
}
"""Settings that a fork has from the former run, with the reason."""

_SCORING = "score_beams"

_BEFORE_SCORING = "expand"
"""A node after which the level is scored."""

_RUN_RECORDS = ("order", "input", "warm_start")

_Value = Mapping[str, JsonValue]


async def fork(
    thread_id: str,
    *,
    level: int,
    new_id: str | None = None,
    changes: Mapping[str, object] | None = None,
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> RunResult:
    """Branch a run from the state that it had after a level, carry the new run out, and return what was found.

    The former run stays as it is. Calls that it finished are not made again and cost the fork nothing.

    Args:
        thread_id: The former run; it need not be finished.
        level: After which level; 0 is the evaluation of the initial prompt.
        new_id: Names the new run; a new name when absent.
        changes: Settings to change by name; the others are the former run's. They choose the level's beam already.
        options: Where the runs are kept and who is told.
        parts: Replacements for models and components.

    Raises:
        UsageError: a setting cannot be changed in a fork, or there is no checkpoint of the level.
        RunNotFoundError: there is no such run.
        RunExistsError: there is a run of the new name.
        ModelCallError: a model endpoint cannot be used; the fork can be resumed.
        RunInterruptedError: the fork was asked to stop, or its budget is spent; it can be resumed.
    """
    options, parts = options or RunOptions(), parts or Parts()
    name = check_thread_id(new_id or new_thread_id())
    changes = changes or {}
    await create_fork(thread_id, name, level=level, changes=changes, options=options, parts=parts)
    named_again = {"reward": changes["reward"]} if "reward" in changes else {}
    return await resume(name, options=options, parts=parts, changes=named_again)


async def create_fork(
    thread_id: str, new_id: str, *, level: int, changes: Mapping[str, object], options: RunOptions, parts: Parts
) -> RunRecord:
    """Store a fork as a run that is still to be carried out, and return its record; see :func:`fork`."""
    async with find_storage(options.checkpoint).open_run(new_id, must_exist=True) as checkpoint:
        registry = RunRegistry(checkpoint.store)
        former = await registry.find(thread_id)
        former.check_own()
        await check_is_new(checkpoint, new_id, options)
        if former.kind != "search":
            raise UsageError(f"Run {thread_id!r} optimises ICL examples: only a search has levels to fork it at.")
        check_named_again(former.settings, changes)
        settings = change_settings(former.settings, changes)
        context = assemble(settings, parts)
        check_screen(settings, context.components.screen)
        graph = build_graph(settings, checkpointer=checkpoint.saver)
        state = await find_level(graph, thread_id, level)
        record = make_record(new_id, settings, options, warm_start=former.warm_start)
        # It is still to be carried out.
        origin = {"status": "interrupted", "forked_from": thread_id, "forked_level": level}
        record = record.model_copy(update=origin)
        # Of a fork that was killed before it was on the list, something may be left.
        await prune_run(checkpoint, record, keep="nothing")
        await copy_records(Archive(checkpoint.store, thread_id), Archive(checkpoint.store, new_id), state)
        await begin_thread(graph, new_id, state, settings=settings, fingerprints=context.search_fingerprints())
        return await registry.save(record)


def change_settings(former: Settings, changes: Mapping[str, object]) -> Settings:
    """Return a fork's settings.

    Raises:
        UsageError: one of the changes is of a setting that a fork has from the former run, or cannot be used.
    """
    settings = build_settings(merge_settings(former.model_dump(), changes))
    for name, reason in REASON_BY_FIXED_SETTING.items():
        if getattr(settings, name) != getattr(former, name):
            raise UsageError(f"{name}: a fork cannot change it: {reason}.")
    return settings


async def find_level(graph: SearchGraph, thread_id: str, level: int) -> SearchState:
    """Return a run's state at the end of a level, before its beam is chosen.

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
    """Save a former run's state as the beginning of a new thread, to be gone on with under other settings."""
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
    """Give a fork the records of the former run that its state names, and its finished calls."""
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
        "vectors": lambda _, __: True,
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
        records = await source.get_all(kind)
        await target.put_all(kind, {key: value for key, value in records.items() if keeps(key, value)})
    calls = await source.get_all("calls")
    await target.put_all("calls", {key: mark_inherited(value) for key, value in calls.items()})


def _level_in(key: str) -> int:
    """Return the level in the key of a candidate, of its rollouts, or of its children: what is before the first dot."""
    return int(key.partition("/")[0].partition(".")[0])
