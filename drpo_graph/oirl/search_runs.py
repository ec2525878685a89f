"""Demonstrations that searches leave behind: every critique says what a prompt did on a query."""

from collections.abc import Sequence
from typing import NamedTuple

from drpo_graph.errors import DemonstrationsError, UsageError
from drpo_graph.oirl.demonstrations import Demonstration
from drpo_graph.parts.checkers import to_outcome
from drpo_graph.records import Query, Rollout
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.protocols import Storage
from drpo_graph.storage.run_list import DEED_BY_KIND, RunRecord, RunRegistry


class RunDemonstrations(NamedTuple):
    """What one search demonstrates."""

    thread_id: str
    rows: tuple[Demonstration, ...]
    num_unscored: int
    """Responses without a critique; they are no rows."""
    num_repeated: int
    """Responses that equal candidates share: each is one row."""


async def read_run_demonstrations(storage: Storage, thread_ids: Sequence[str]) -> tuple[RunDemonstrations, ...]:
    """Return what searches demonstrate, finished or not: each scored response under its candidate's prompt.

    An outcome is the reward, from 1 to 5, brought to 0 to 1. What the calls cost is not known.

    Raises:
        RunNotFoundError: there is no run of a name.
        UsageError: a run is no search.
        DemonstrationsError: none of a run's responses is scored, or its queries were pruned.
    """
    async with storage.open_for_reading() as reader:
        found = []
        for thread_id in dict.fromkeys(thread_ids):
            record = await RunRegistry(reader.store).find(thread_id)
            if record.kind != "search":
                raise UsageError(f"Run {thread_id!r} {DEED_BY_KIND[record.kind]}: expected a run of drpo optimize.")
            found.append(await _read(Archive(reader.store, thread_id), record))
        return tuple(found)


async def _read(archive: Archive, record: RunRecord) -> RunDemonstrations:
    rollouts = [one for _, one in sorted((await archive.records("rollouts", Rollout)).items())]
    queries = await archive.records("queries", Query)
    prompts = {key: str(one["prompt"]) for key, one in (await archive.get_all("candidates")).items()}
    if rollouts and not queries:
        raise DemonstrationsError(
            f"Run {record.thread_id!r} has no queries any more: `drpo prune --keep result` took them. Name another run."
        )
    rows: dict[tuple[str, str, str | None], Demonstration] = {}
    num_unscored = 0
    for one in rollouts:
        prompt = prompts[one.candidate_id]
        outcome = to_outcome(one.reward) if one.reward is not None and one.critique is not None else -1.0
        # Under compat a failure counts 0, and a critic may give what is no score: neither says what the prompt did.
        if not 0 <= outcome <= 1:
            num_unscored += 1
            continue
        row = Demonstration(
            query=queries[one.query_id].text,
            prompt=prompt,
            outcome=outcome,
            model=record.settings.base.model,
            prompt_name=f"{record.thread_id}/{one.candidate_id}",
        )
        # A prompt that is kept is run again without a call: that is no second trial.
        rows.setdefault((prompt, one.query_id, one.response), row)
    if not rows:
        raise DemonstrationsError(f"Run {record.thread_id!r} has no scored response yet: there is nothing to learn.")
    num_scored = len(rollouts) - num_unscored
    return RunDemonstrations(record.thread_id, tuple(rows.values()), num_unscored, num_scored - len(rows))
