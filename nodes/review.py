"""Wait between two levels until somebody has looked at the beam. No model call: an interrupted node runs again."""

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from drpo_graph.errors import ReviewError
from drpo_graph.events.schema import ReviewDecided, ReviewRequested
from drpo_graph.records import ROOT_ID
from drpo_graph.search.planning import ends_with, has_next, plan_next
from drpo_graph.search.reviews import (
    ReviewDecision,
    as_json,
    drop_request,
    find_decision,
    find_vetoed,
    put_decision,
    put_request,
    read_decision,
    take_from_level,
)
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import SearchState
from drpo_graph.settings.settings import Settings


async def review(state: SearchState, runtime: Runtime[RunContext]) -> SearchState:
    """Return how the search goes on from the beam as it was decided on; without a decision the run pauses here.

    It pauses in its checkpoint. An edit is no part of the state: the next level reads it with the decision.
    """
    session = await session_of(runtime, state["run_id"])
    settings = runtime.context.settings
    runtime.context.check_fingerprints(state["fingerprints"])
    decision = await find_decision(session.archive, state["level"])
    if decision is None and settings.approve:
        decision = await _ask(session, state, settings)
        await put_decision(session.archive, state["level"], decision)
    if decision is None:
        # The run was resumed without reviews: nothing waits any more.
        await drop_request(session.archive)
        return await plan_next(session, state, state["beam"], settings=settings)
    session.emitter.emit(
        ReviewDecided(
            run_id=session.run_id,
            level=state["level"],
            author=decision.author,
            vetoed_ids=decision.veto,
            edited_ids=tuple(decision.edits),
            note=decision.note,
        )
    )
    await take_from_level(session.archive, state["level"], decision)
    vetoed = await find_vetoed(session.archive)
    # A candidate that is vetoed and edited stays until its edit has taken its place.
    beam = [one for one in state["beam"] if one["prompt_hash"] not in vetoed or one["id"] in decision.edits]
    return await plan_next(session, state, beam or state["beam"], settings=settings, decision=decision)


async def _ask(session: RunSession, state: SearchState, settings: Settings) -> ReviewDecision:
    """Return the decision; what is none is answered by the same question again."""
    request = await put_request(
        session.archive,
        state,
        is_last=ends_with(state["beam"], state, settings),
        takes_edits=has_next(state, settings),
    )
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
