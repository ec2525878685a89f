"""Deliver the result: the best candidate of the final beam, or the winner on held-out queries. No model call."""

import time
from collections import Counter

from langgraph.runtime import Runtime

from drpo_graph.archive import rollout_key
from drpo_graph.context import RunContext, RunSession, session_of
from drpo_graph.events import RunFinished, ValidationFinished
from drpo_graph.records import Rollout, RunResult, Validation, mean
from drpo_graph.selection import ROOT_ID, compare_on_validation
from drpo_graph.state import STATE_FORMAT, CandidateRef, SearchOutput, SearchState


async def conclude(state: SearchState, runtime: Runtime[RunContext]) -> SearchOutput:
    """Return the delivered prompt and the run's result."""
    session = await session_of(runtime, state["run_id"])
    validation = _validate(session, state, runtime.context.settings.seed)
    delivered_id = validation.selected_id if validation else state["beam"][0]["id"]
    result = await _make_result(session, state, delivered_id, validation)
    await session.archive.put("run", "result", result.model_dump(mode="json"))
    session.emitter.emit(RunFinished(run_id=session.run_id, result=result, elapsed_s=time.time() - session.started_at))
    runtime.context.close_session(session.run_id)
    return {"system_prompt": result.system_prompt, "result": result.model_dump(mode="json")}


def _validate(session: RunSession, state: SearchState, seed: int) -> Validation | None:
    if state["phase"] != "validate":
        return None
    rewards: dict[str, dict[str, float | None]] = {one: {} for one in state["contender_ids"]}
    order = {query_id: place for place, query_id in enumerate(state["validation_ids"])}
    for rollout in sorted(state["rollouts"], key=lambda one: order[one["query_id"]]):
        rewards[rollout["candidate_id"]][rollout["query_id"]] = rollout["reward"]
    validation = compare_on_validation(rewards, seed=seed)
    winner = next((one for one in validation.comparisons if one.candidate_id == validation.selected_id), None)
    session.emitter.emit(
        ValidationFinished(
            run_id=session.run_id,
            selected_id=validation.selected_id,
            difference=winner.difference if winner else None,
            interval_low=winner.interval_low if winner else None,
            interval_high=winner.interval_high if winner else None,
            is_significant=validation.is_significant,
        )
    )
    return validation


async def _make_result(
    session: RunSession, state: SearchState, delivered_id: str, validation: Validation | None
) -> RunResult:
    scores = await session.archive.scores_by_candidate()
    trace = [await session.archive.candidate(delivered_id)]
    while (parent_id := trace[0]["parent_id"]) is not None:
        trace.insert(0, await session.archive.candidate(parent_id))
    delivered = next((one for one in state["beam"] if one["id"] == delivered_id), None)
    return RunResult(
        thread_id=session.run_id,
        status="done",
        system_prompt=trace[-1]["prompt"],
        candidate_id=delivered_id,
        reward=scores[delivered_id][0],
        path_reward=scores[delivered_id][1],
        initial_prompt=trace[0]["prompt"],
        initial_reward=state["initial_reward"],
        initial_reward_same_queries=await _initial_reward_on(session, delivered),
        depth=state["level"],
        trace=tuple(one["id"] for one in trace),
        beam=tuple(one["id"] for one in state["beam"]),
        validation=validation,
        usage_by_role=dict(sorted(session.ledger.usage_by_role.items())),
        failures_by_kind=await _count_failures(session),
        unusable_by_kind=await _count_noted(session, "reply/"),
        fingerprints=state["fingerprints"],
        format=STATE_FORMAT,
    )


async def _initial_reward_on(session: RunSession, delivered: CandidateRef | None) -> float | None:
    """Return the initial prompt's reward on the delivered candidate's queries, if the search ran it on all of them."""
    rewards: list[float | None] = []
    for query_id in delivered["query_ids"] if delivered else ():
        stored = await session.archive.get("rollouts", rollout_key(ROOT_ID, query_id))
        if stored is None:
            return None
        rewards.append(Rollout.model_validate(stored).reward)
    return mean(rewards)


async def _count_failures(session: RunSession) -> dict[str, int]:
    """Return failures by kind; a kept prompt that meets its parent's failure again counts it once."""
    failures = Counter(session.ledger.retries_by_kind)
    failures.update(await _count_noted(session, "call/"))
    seen = set()
    for stored in (await session.archive.get_all("rollouts")).values():
        rollout = Rollout.model_validate(stored)
        if rollout.failure is not None:
            sample = (await session.archive.prompt_of(rollout.candidate_id), rollout.query_id)
            failures[rollout.failure.kind] += sample not in seen
            seen.add(sample)
    return dict(sorted(failures.items()))


async def _count_noted(session: RunSession, prefix: str) -> dict[str, int]:
    """Return what was noted of calls while they were made, by kind."""
    counts: Counter[str] = Counter()
    for key, stored in (await session.archive.get_all("failures")).items():
        if key.startswith(prefix):
            counts.update({kind: count for kind, count in stored.items() if isinstance(count, int)})
    return dict(sorted(counts.items()))
