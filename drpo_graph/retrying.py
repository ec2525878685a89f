"""Ask again for what a stopped run holds to be final: replies that could not be used."""

from typing import Any

from langgraph.store.base import BaseStore

from drpo_graph.archive import Archive, namespace_of
from drpo_graph.checkpoint import check_thread_id
from drpo_graph.graph import build_graph
from drpo_graph.records import Rollout
from drpo_graph.registry import RunRegistry
from drpo_graph.storage import Storage


async def retry_failed(thread_id: str, *, storage: Storage) -> int:
    """Let the next resume of a stopped run ask again for unusable replies; return how many calls that concerns.

    What they cost stays counted. Where the run stopped because no candidate of a level could be scored, the level's
    candidates are run again on the same queries.

    Args:
        thread_id: The run.
        storage: Where it is kept.

    Raises:
        RunNotFoundError: there is no such run.
        RunLockedError: another process works on it.
    """
    thread_id = check_thread_id(thread_id)
    async with storage.open_run(thread_id, must_exist=True) as opened:
        record = await RunRegistry(opened.store).find(thread_id)
        if record.status == "done":
            return 0
        archive = Archive(opened.store, thread_id)
        num_released = await _release_calls(archive, opened.store)
        for key, stored in (await archive.get_all("rollouts")).items():
            if Rollout.model_validate(stored).failure is not None:
                await opened.store.adelete(namespace_of(thread_id, "rollouts"), key)
        graph = build_graph(record.settings, checkpointer=opened.saver)
        config: Any = {"configurable": {"thread_id": thread_id}}
        if (await graph.aget_state(config)).next == ("score_beams",):
            again: Any = {"rollouts": None, "is_repeat": True, "num_stalled": 0, "prefetch_ids": []}
            await graph.aupdate_state(config, again, as_node="score_beams")
        return num_released


async def _release_calls(archive: Archive, store: BaseStore) -> int:
    """Put the calls with unusable replies where they answer nothing; return how many there were."""
    num_released = 0
    for noted in await archive.get_all("failures"):
        where, _, key = noted.partition("/")
        call = await archive.get("calls", key) if where == "reply" else None
        if call is None:
            continue
        place = 0
        while await archive.get("calls", f"{key}/{place}") is not None:
            place += 1
        # Under another key it is still in the tally of what was used.
        await archive.put("calls", f"{key}/{place}", call)
        await store.adelete(namespace_of(archive.run_id, "calls"), key)
        num_released += 1
    return num_released
