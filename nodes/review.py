"""Wait between two levels until somebody has looked at the beam. No model call: an interrupted node runs again."""

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from drpo_graph.beam import hash_prompt
from drpo_graph.context import RunContext, RunSession, session_of
from drpo_graph.errors import ReviewError
from drpo_graph.events import LevelStarted, ReviewDecided, ReviewRequested, ValidationStarted
from drpo_graph.review_records import (
    find_decision,
    find_vetoed,
    put_decision,
    put_request,
    reviewed_level,
    take_from_level,
)
from drpo_graph.reviews import ReviewDecision, as_json, read_decision
from drpo_graph.selection import ROOT_ID
from drpo_graph.settings import Settings
from drpo_graph.state import SearchState


async def review(state: SearchState, runtime: Runtime[RunContext]) -> SearchState:
    """Return the beam as it was decided on; without a decision the run pauses here, in its checkpoint.

    An edit is no part of the state: the next level reads it with the decision.
    """
    session = await session_of(runtime, state["run_id"])
    settings = runtime.context.settings
    runtime.context.check_fingerprints(state["fingerprints"])
    level = reviewed_level(state)
    decision = await find_decision(session.archive, level)
    if decision is None and settings.approve:
        decision = await _ask(session, state, settings)
        await put_decision(session.archive, level, decision)
    if decision is None:
        # The run was resumed without reviews.
        return {"awaits_review": False}
    session.emitter.emit(
        ReviewDecided(
            run_id=session.run_id,
            level=level,
            author=decision.author,
            vetoed_ids=decision.veto,
            edited_ids=tuple(decision.edits),
            note=decision.note,
        )
    )
    await take_from_level(session.archive, level, decision)
    return await _apply(session, state, decision, settings)


async def _ask(session: RunSession, state: SearchState, settings: Settings) -> ReviewDecision:
    """Return the decision; what is none is answered by the same question again."""
    request = await put_request(session.archive, state)
    ids = tuple(one.id for one in request.candidates)
    session.emitter.emit(
        ReviewRequested(run_id=session.run_id, level=request.level, candidate_ids=ids, is_last=request.is_last)
    )
    initial_prompt = await session.archive.prompt_of(ROOT_ID)
    while True:
        answer = interrupt(as_json(request))
        try:
            return read_decision(answer, request, settings, initial_prompt=initial_prompt)
        except ReviewError as error:
            # To raise would end the run, for a slip of whoever answers.
            request = request.model_copy(update={"problem": str(error)})


async def _apply(session: RunSession, state: SearchState, decision: ReviewDecision, settings: Settings) -> SearchState:
    update: SearchState = {"awaits_review": False}
    if not decision.veto and not decision.edits:
        return update
    # A candidate that is vetoed and edited stays until its edit has taken its place.
    beam = [one for one in state["beam"] if one["id"] not in decision.veto or one["id"] in decision.edits]
    update["beam"] = beam
    if state["phase"] == "search":
        per_parent = settings.n_actions + settings.keep_parents
        num_children = len(decision.edits) + per_parent * sum(one["id"] not in decision.veto for one in beam)
        session.emitter.emit(
            LevelStarted(
                run_id=session.run_id,
                level=state["level"],
                max_depth=state["max_depth"],
                query_ids=tuple(state["query_ids"]),
                num_rollouts=num_children * len(state["query_ids"]),
            )
        )
    if state["phase"] == "validate":
        vetoed = await find_vetoed(session.archive)
        hashes = {one: hash_prompt(await session.archive.prompt_of(one)) for one in state["contender_ids"]}
        contender_ids = [one for one in state["contender_ids"] if one == ROOT_ID or hashes[one] not in vetoed]
        update["contender_ids"] = contender_ids
        session.emitter.emit(
            ValidationStarted(
                run_id=session.run_id,
                candidate_ids=tuple(contender_ids),
                num_rollouts=len(contender_ids) * len(state["validation_ids"]),
            )
        )
    return update
