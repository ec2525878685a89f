"""What a run found, from its records: at its end, or as far as it came when it was stopped."""

from collections.abc import Mapping, Sequence
from itertools import chain

from pydantic import JsonValue

from drpo_graph.calls.failed_samples import count_failures, count_replies
from drpo_graph.calls.ledger import Ledger
from drpo_graph.evidence import find_evidence
from drpo_graph.records import ROOT_ID, CandidateRef, Rollout, RunResult, RunStatus, Validation, mean
from drpo_graph.search.state import STATE_FORMAT, SearchState
from drpo_graph.storage.archive import Archive, rollout_key, scores_by_candidate
from drpo_graph.storage.tree import creation_order, trace_of

_LEAST_GAIN = 1e-9
"""Less is how numbers are added up."""


async def choose_delivered(archive: Archive, beam: Sequence[CandidateRef], *, is_compat: bool) -> str:
    """Return the id of what is delivered without held-out queries.

    It is the beam's best that scored higher than the initial prompt on the same queries. Where none did, it is the best
    that was not compared so: rewards of different queries do not compare, and the result says that. A candidate that is
    known to be no better never takes the initial prompt's place. Under compat the beam's first is delivered.
    """
    if is_compat and beam:
        return beam[0]["id"]
    gains = [(one["id"], await _find_gain(archive, one)) for one in beam]
    better = (one for one, gain in gains if gain is not None and gain > _LEAST_GAIN)
    uncompared = (one for one, gain in gains if gain is None)
    return next(chain(better, uncompared), ROOT_ID)


async def _find_gain(archive: Archive, candidate: CandidateRef) -> float | None:
    """Return by how much a candidate scored higher than the initial prompt, ``None`` where nothing compares them."""
    initial = await _initial_rewards(archive, candidate["query_ids"])
    own = [(await archive.rollout(candidate["id"], one)).reward for one in candidate["query_ids"]] if initial else []
    pairs = zip(own, initial or (), strict=True)
    return mean([None if mine is None or former is None else mine - former for mine, former in pairs])


async def _initial_rewards(archive: Archive, query_ids: Sequence[str]) -> list[float | None] | None:
    """Return the initial prompt's rewards, or ``None`` where it was not run on all of the queries.

    A level on which it was tried again, as a parent that was kept, counts as well.
    """
    prompt = await archive.prompt_of(ROOT_ID)
    stored = await archive.get_all("candidates")
    ids = sorted((one for one in stored if stored[one]["prompt"] == prompt), key=creation_order)
    rewards = []
    for query_id in query_ids:
        rollouts = [await archive.record("rollouts", rollout_key(one, query_id), Rollout) for one in ids]
        found = next((one for one in rollouts if one is not None), None)
        if found is None:
            return None
        rewards.append(found.reward)
    return rewards


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
    scores = scores_by_candidate(await archive.levels())
    trace = await trace_of(archive, delivered_id)
    notes = await archive.get_all("failures")
    result = RunResult(
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
    return result.model_copy(update={"evidence": find_evidence(result)})


async def _initial_reward_on(archive: Archive, state: SearchState, delivered_id: str) -> float | None:
    """Return the initial prompt's reward on the delivered candidate's queries, if the search ran it on all of them."""
    delivered = next((one for one in state["beam"] if one["id"] == delivered_id), None)
    return mean(await _initial_rewards(archive, delivered["query_ids"]) or ()) if delivered else None


async def _count_failures(
    archive: Archive, ledger: Ledger, notes: Mapping[str, Mapping[str, JsonValue]]
) -> dict[str, int]:
    """Return failures by kind; a kept prompt that meets its parent's failure again counts it once."""
    failures = ledger.retries_by_kind + count_failures(notes)
    seen = set()
    for rollout in (await archive.records("rollouts", Rollout)).values():
        if rollout.failure is not None:
            sample = (await archive.prompt_of(rollout.candidate_id), rollout.query_id)
            failures[rollout.failure.kind] += sample not in seen
            seen.add(sample)
    return dict(sorted(failures.items()))
