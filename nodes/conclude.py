"""Deliver the result: the best candidate of the final beam, or the winner on held-out queries. No model call."""

import time

from langgraph.runtime import Runtime

from drpo_graph.context import RunContext, RunSession, session_of
from drpo_graph.events import RunFinished, ValidationFinished
from drpo_graph.records import Validation
from drpo_graph.results import make_result
from drpo_graph.selection import compare_on_validation
from drpo_graph.state import SearchOutput, SearchState


async def conclude(state: SearchState, runtime: Runtime[RunContext]) -> SearchOutput:
    """Return the delivered prompt and the run's result."""
    session = await session_of(runtime, state["run_id"])
    validation = _validate(session, state, runtime.context.settings.seed)
    delivered_id = validation.selected_id if validation else state["beam"][0]["id"]
    result = await make_result(session.archive, session.ledger, state, delivered_id=delivered_id, validation=validation)
    await session.archive.put("run", "result", result.model_dump(mode="json"))
    session.emitter.emit(RunFinished(run_id=session.run_id, result=result, elapsed_s=time.time() - session.started_at))
    await session.ledger.drain()
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
