"""What a run found, from its records: at its end, or as far as it came when it was stopped."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from drpo_graph.calls.failed_samples import count_failures, count_replies
from drpo_graph.calls.ledger import Ledger
from drpo_graph.records import ROOT_ID, CandidateRef, Rollout, RunResult, RunStatus, Validation, mean
from drpo_graph.search.state import STATE_FORMAT, SearchState
from drpo_graph.storage.archive import Archive, rollout_key
from drpo_graph.storage.tree import trace_of

_LEAST_GAIN = 1e-9
"""Less is how numbers are added up."""


async def choose_delivered(archive: Archive, beam: Sequence[CandidateRef], *, is_compat: bool) -> str:
    """Return the id of what is delivered without held-out queries: the beam's best that is not known to be no better.

    A candidate that scored no higher than the initial prompt on the same queries never takes its place. One whose
    queries the initial prompt was not run on is delivered for its own reward. Under compat the beam's first is.
    """
    for one in beam:
        if is_compat or not await _is_no_better(archive, one):
            return one["id"]
    return ROOT_ID


async def _is_no_better(archive: Archive, candidate: CandidateRef) -> bool:
    """Return whether the initial prompt was run on all of a candidate's queries, and scored at least as high."""
    differences: list[float | None] = []
    for query_id in candidate["query_ids"]:
        initial = await archive.get("rollouts", rollout_key(ROOT_ID, query_id))
        if initial is None:
            return False
        own = (await archive.rollout(candidate["id"], query_id)).reward
        former = Rollout.model_validate(initial).reward
        differences.append(None if own is None or former is None else own - former)
    gain = mean(differences)
    return gain is not None and gain <= _LEAST_GAIN


async def make_result(
    archive: Archive,
    ledger: Ledger,
    state: SearchState,
    *,
    delivered_id: str,
    validation: Validation | None,
    status: RunStatus = "done",
) -> RunResult:
    """Return a run's result: that of its end, or what it would be if the search ended here, with a scored beam."""
    scores = await archive.scores_by_candidate()
    trace = await trace_of(archive, delivered_id)
    notes = await archive.get_all("failures")
    return RunResult(
        thread_id=state["run_id"],
        status=status,
        system_prompt=trace[-1]["prompt"],
        candidate_id=delivered_id,
        reward=scores[delivered_id][0],
        path_reward=scores[delivered_id][1],
        initial_prompt=trace[0]["prompt"],
        initial_reward=state["initial_reward"],
        initial_reward_same_queries=await _initial_reward_on(archive, state, delivered_id),
        depth=state["level"] if state["phase"] != "search" else max(state["level"] - 1, 0),
        trace=tuple(one["id"] for one in trace),
        beam=tuple(one["id"] for one in state["beam"]),
        validation=validation,
        usage_by_role=dict(sorted(ledger.usage_by_role.items())),
        cost_by_role=dict(sorted(ledger.cost_by_role.items())),
        failures_by_kind=await _count_failures(archive, ledger, notes),
        unusable_by_kind=dict(sorted(count_replies(notes).items())),
        fingerprints=state["fingerprints"],
        format=STATE_FORMAT,
    )


async def _initial_reward_on(archive: Archive, state: SearchState, delivered_id: str) -> float | None:
    """Return the initial prompt's reward on the delivered candidate's queries, if the search ran it on all of them."""
    delivered = next((one for one in state["beam"] if one["id"] == delivered_id), None)
    rewards: list[float | None] = []
    for query_id in delivered["query_ids"] if delivered else ():
        stored = await archive.get("rollouts", rollout_key(ROOT_ID, query_id))
        if stored is None:
            return None
        rewards.append(Rollout.model_validate(stored).reward)
    return mean(rewards)


async def _count_failures(
    archive: Archive, ledger: Ledger, notes: Mapping[str, Mapping[str, JsonValue]]
) -> dict[str, int]:
    """Return failures by kind; a kept prompt that meets its parent's failure again counts it once."""
    failures = ledger.retries_by_kind + count_failures(notes)
    seen = set()
    for stored in (await archive.get_all("rollouts")).values():
        rollout = Rollout.model_validate(stored)
        if rollout.failure is not None:
            sample = (await archive.prompt_of(rollout.candidate_id), rollout.query_id)
            failures[rollout.failure.kind] += sample not in seen
            seen.add(sample)
    return dict(sorted(failures.items()))
