"""Fork a run: branch it with other settings from the state that it had after a level, without paying for it again."""

from collections.abc import Mapping

from drpo_graph.errors import RunExistsError, UsageError
from drpo_graph.graph import build_context, build_graph
from drpo_graph.parts.rewards import check_named_again
from drpo_graph.records import RunResult
from drpo_graph.runs.branching import begin_thread, copy_records, find_level
from drpo_graph.runs.runner import Parts, new_thread_id, resume
from drpo_graph.runs.work import RunOptions, make_record
from drpo_graph.settings.settings import Settings, build_settings, merge_settings
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.retention import prune_run
from drpo_graph.storage.run_list import RunRecord, RunRegistry
from drpo_graph.storage.sqlite_file import check_thread_id, find_storage

REASON_BY_FIXED_SETTING: Mapping[str, str] = {
    "initial_prompt": "it was scored before the fork begins; start a new run with it",
    "num_queries": "the run's queries were drawn when it began",
    "compat": "the published search counts levels and rewards by other rules",
}
"""Settings that a fork has from the former run, with the reason."""


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
    """Store a fork as a run that is still to be carried out, and return its record.

    Args:
        thread_id: The former run.
        new_id: Names the new run.
        level: After which level.
        changes: Settings to change by name.
        options: Where the runs are kept.
        parts: Replacements for models and components.

    Raises:
        UsageError: a setting cannot be changed in a fork, or there is no checkpoint of the level.
        RunNotFoundError: there is no such run.
        RunExistsError: there is a run of the new name.
    """
    async with find_storage(options.checkpoint).open_run(new_id, must_exist=True) as checkpoint:
        registry = RunRegistry(checkpoint.store)
        former = await registry.find(thread_id)
        if await registry.has(new_id):
            raise RunExistsError(f"Run {new_id!r} exists already. `drpo resume {new_id}` continues it.")
        if former.kind != "search":
            raise UsageError(f"Run {thread_id!r} optimises ICL examples: only a search has levels to fork it at.")
        check_named_again(former.settings, changes)
        settings = change_settings(former.settings, changes)
        context = build_context(
            settings,
            models=parts.models,
            selector=parts.selector,
            critic=parts.critic,
            rewriter=parts.rewriter,
            beam_policy=parts.beam_policy,
            example_retriever=parts.example_retriever,
            responder=parts.responder,
        )
        graph = build_graph(settings, checkpointer=checkpoint.saver)
        state = await find_level(graph, thread_id, level)
        record = _make_record(former, new_id, level=level, settings=settings, options=options)
        # Of a fork that was killed before it was on the list, something may be left.
        await prune_run(checkpoint, record, keep="nothing")
        await copy_records(Archive(checkpoint.store, thread_id), Archive(checkpoint.store, new_id), state)
        await begin_thread(graph, new_id, state, settings=settings, fingerprints=context.fingerprints())
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


def _make_record(former: RunRecord, new_id: str, *, level: int, settings: Settings, options: RunOptions) -> RunRecord:
    record = make_record(new_id, settings, options, warm_start=former.warm_start)
    # It is still to be carried out.
    return record.model_copy(update={"status": "interrupted", "forked_from": former.thread_id, "forked_level": level})
