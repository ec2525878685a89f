"""Runs that wait for a person: what each asks, and the decision by which it goes on."""

from collections.abc import Mapping
from pathlib import Path

from drpo_graph.errors import ReviewError
from drpo_graph.records import ROOT_ID
from drpo_graph.search.reviews import (
    ReviewDecision,
    ReviewRequest,
    find_request,
    put_decision,
    read_decision,
    take_from_level,
)
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import DEFAULT_CHECKPOINT, find_storage
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.run_list import RunRegistry


async def pending_review(
    thread_id: str, *, checkpoint: Path | str | Storage = DEFAULT_CHECKPOINT
) -> ReviewRequest | None:
    """Return what a run waits for, or ``None`` where it waits for no decision. Nothing is written.

    Raises:
        RunNotFoundError: there is no such run.
        UsageError: it runs in another graph, which is answered with LangGraph's ``Command(resume=...)``.
        CheckpointError: the checkpoint cannot be read.
    """
    async with find_storage(checkpoint).open_for_reading() as reader:
        record = await RunRegistry(reader.store).find(check_thread_id(thread_id))
        record.check_own()
        return await find_request(Archive(reader.store, thread_id)) if record.status != "done" else None


async def decide(
    thread_id: str,
    decision: ReviewDecision | Mapping[str, object],
    *,
    checkpoint: Path | str | Storage = DEFAULT_CHECKPOINT,
) -> ReviewDecision:
    """Store a decision for a run that waits for one, and return it; ``resume()`` goes on by it, here or elsewhere.

    Args:
        thread_id: The run.
        decision: The decision, or its fields.
        checkpoint: Where the run is kept.

    Raises:
        ReviewError: the decision cannot be used, or the run waits for none.
        RunNotFoundError: there is no such run.
        UsageError: it runs in another graph, which is answered with LangGraph's ``Command(resume=...)``.
        RunLockedError: a process works on it: it does not wait.
    """
    async with find_storage(checkpoint).open_run(check_thread_id(thread_id), must_exist=True) as opened:
        registry = RunRegistry(opened.store)
        record = await registry.find(thread_id)
        record.check_own()
        archive = Archive(opened.store, thread_id)
        request = await find_request(archive) if record.status != "done" else None
        if request is None:
            raise ReviewError(f"Run {thread_id!r} ({record.status}) waits for no decision.")
        initial_prompt = await archive.prompt_of(ROOT_ID)
        read = read_decision(decision, request, record.settings, initial_prompt=initial_prompt)
        await put_decision(archive, request.level, read)
        await take_from_level(archive, request.level, read)
        # It waits no more; whoever looks at it is told how it goes on.
        message = f"Level {request.level} is decided by {read.author}; it goes on by that."
        await registry.save(record.model_copy(update={"status": "interrupted", "message": message}))
        return read
