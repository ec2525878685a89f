"""Deliver the result: the best candidate of the final beam, or the winner on held-out queries. No model call."""

import asyncio

from langgraph.runtime import Runtime

from drpo_graph.events.schema import RunFinished, ValidationFinished
from drpo_graph.records import Validation
from drpo_graph.search.announce import announce_validation
from drpo_graph.search.results import choose_delivered, make_result
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import SearchState
from drpo_graph.search.unscored import describe_failure, drop_failed, make_stalled
from drpo_graph.search.validation import compare_on_validation


async def conclude(state: SearchState, runtime: Runtime[RunContext]) -> SearchState:
    """Return the delivered prompt and the run's result.

    Where the user lets the run ask again, what failed of the validation is run again instead.

    Raises:
        SearchStalledError: no contender could be compared with the initial prompt on any held-out query.
    """
    session = await session_of(runtime, state["run_id"])
    if state["phase"] == "validate" and (num_failed := await drop_failed(session, state)):
        return _validate_again(session, state, num_failed)
    validation = await _validate(session, state, runtime.context.settings.seed)
    is_compat = runtime.context.settings.is_compat
    delivered_id = (
        validation.selected_id
        if validation
        else await choose_delivered(session.archive, state["beam"], is_compat=is_compat)
    )
    result = await make_result(session.archive, session.ledger, state, delivered_id=delivered_id, validation=validation)
    await session.archive.put("run", "result", result.model_dump(mode="json"))
    session.emitter.emit(RunFinished(run_id=session.run_id, result=result))
    await session.ledger.drain()
    runtime.context.close_session(session.run_id)
    return {"system_prompt": result.system_prompt, "result": result.model_dump(mode="json")}


def _validate_again(session: RunSession, state: SearchState, num_failed: int) -> SearchState:
    session.warn(f"validation: {num_failed} answers without a score are asked for again")
    announce_validation(session, state["contender_ids"], num_rollouts=len(state["rollouts"]))
    return {
        "num_asked_again": session.ledger.failures.num_asked,
        "rollouts": None,  # type: ignore[typeddict-item]  # The reducer empties the list.
    }


async def _validate(session: RunSession, state: SearchState, seed: int) -> Validation | None:
    if state["phase"] != "validate":
        return None
    rewards: dict[str, dict[str, float | None]] = {one: {} for one in state["contender_ids"]}
    order = {query_id: place for place, query_id in enumerate(state["validation_ids"])}
    for rollout in sorted(state["rollouts"], key=lambda one: order[one["query_id"]]):
        rewards[rollout["candidate_id"]][rollout["query_id"]] = rollout["reward"]
    # Not on the event loop: it takes a while with many contenders, and other runs go on.
    validation = await asyncio.to_thread(compare_on_validation, rewards, seed=seed)
    if validation.comparisons and not any(one.num_queries for one in validation.comparisons):
        # To deliver the initial prompt would throw away what the search found, on no evidence.
        reason = await describe_failure(session, state["contender_ids"], state["validation_ids"])
        found = f"The best by the training queries is {state['beam'][0]['id']}, which `drpo export` writes"
        raise make_stalled(
            f"No candidate could be compared with the initial prompt on the held-out queries ({reason.text}). {found}",
            reason,
        )
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
