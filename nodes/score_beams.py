"""Score a level's candidates, choose the beam, and decide whether and how the search goes on. No model call."""

import inspect
from collections.abc import Sequence

from langgraph.runtime import Runtime

from drpo_graph.parts.own_answers import take_beam
from drpo_graph.records import CandidateRef, RolloutRef
from drpo_graph.search.announce import announce_level, report_level
from drpo_graph.search.beam import rank, score_candidate
from drpo_graph.search.forecast import look_ahead
from drpo_graph.search.levels import prefetch_indices, repeat_indices
from drpo_graph.search.planning import has_next, plan_next
from drpo_graph.search.reviews import keep_unvetoed
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import SearchState
from drpo_graph.search.unscored import describe_failure, drop_failed, make_stalled
from drpo_graph.settings.settings import Settings

_MAX_STALLED = 2


async def score_beams(state: SearchState, runtime: Runtime[RunContext]) -> SearchState:
    """Return the next level's beam, depth and queries, or the turn to validation or conclusion.

    A level none of whose candidates could be scored is run once more, on the next queries. Where there are none, it
    ends the search, and the former beam stands: an unscored candidate never displaces a scored one. Where the user lets
    the run ask again, what failed of a level is run again on the same queries.

    Raises:
        SearchStalledError: no candidate could be scored, twice in a row.
    """
    session = await session_of(runtime, state["run_id"])
    runtime.context.check_fingerprints(state["fingerprints"])
    settings = runtime.context.settings
    num_asked_again = session.ledger.failures.num_asked
    if num_failed := await drop_failed(session, state):
        return {**_plan_asking_again(session, state, num_failed), "num_asked_again": num_asked_again}
    children = _score_children(state, settings)
    num_stalled = 0 if any(child["reward"] is not None for child in children) else state["num_stalled"] + 1
    if num_stalled and num_stalled < _MAX_STALLED and (again := await _plan_repeat(session, state, settings)):
        return {**again, "num_stalled": num_stalled, "num_asked_again": num_asked_again}
    former = await keep_unvetoed(session.archive, state["beam"]) if num_stalled else []
    if former and not has_next(state, settings):
        beam = former
    else:
        beam = await _choose_beam(runtime.context, children, level=state["level"])
    await _record_level(session, state, children, beam)
    remaining = look_ahead(session, runtime.context, state, num_parents=len(beam))
    report_level(session, state, children, beam, remaining=remaining)
    if num_stalled >= _MAX_STALLED:
        reason = await describe_failure(session, [rank(children)[0]["id"]], state["query_ids"])
        level = f"level {state['level']}: {reason.text}"
        raise make_stalled(f"No candidate could be scored, {_MAX_STALLED} times in a row ({level})", reason)
    if settings.approve and state["level"] > 0:
        # A person may change the beam, and with it how the search goes on: that is planned after the decision.
        update: SearchState = {"beam": beam, "awaits_review": True}
    else:
        update = await plan_next(session, state, beam, settings=settings)
    update["num_stalled"], update["num_asked_again"] = num_stalled, num_asked_again
    update["is_repeat"] = False
    # A run of a version that did not tell parts apart does so from here on.
    update["fingerprints"] = {**runtime.context.search_fingerprints(), **state["fingerprints"]}
    if state["level"] == 0:
        update["initial_reward"] = children[0]["reward"]
    return update


async def _choose_beam(context: RunContext, children: list[CandidateRef], *, level: int) -> list[CandidateRef]:
    said: object = context.components.beam_policy(children, settings=context.settings, level=level)
    return take_beam(await said if inspect.isawaitable(said) else said, children)


def _score_children(state: SearchState, settings: Settings) -> list[CandidateRef]:
    order = {query_id: place for place, query_id in enumerate(state["query_ids"])}
    rollouts_by_candidate: dict[str, list[RolloutRef]] = {}
    for rollout in sorted(state["rollouts"], key=lambda one: order[one["query_id"]]):
        rollouts_by_candidate.setdefault(rollout["candidate_id"], []).append(rollout)
    return [
        score_candidate(one, rollouts_by_candidate.get(one["id"], []), settings=settings) for one in state["children"]
    ]


async def _plan_repeat(session: RunSession, state: SearchState, settings: Settings) -> SearchState | None:
    """Return what runs the level's candidates again, on the next queries, or ``None`` where there are no others."""
    level, num_queries, num_repeats = state["level"], state["num_queries"], state["num_repeats"] + 1
    indices = repeat_indices(level + state["num_repeats"], settings=settings, num_queries=num_queries)
    if not indices:
        return None
    order = await session.archive.query_order()
    ahead = prefetch_indices(
        level + 1, max_depth=state["max_depth"], settings=settings, num_queries=num_queries, num_repeats=num_repeats
    )
    query_ids = [order[one] for one in indices]
    reason = await describe_failure(session, [rank(state["children"])[0]["id"]], state["query_ids"])
    session.warn(
        f"level {level}: no candidate could be scored ({reason.text}); they are run on {len(indices)} other queries"
    )
    num_done = len(state["rollouts"])
    num_rollouts = num_done + len(state["children"]) * len(query_ids)
    announce_level(session, {**state, "query_ids": query_ids}, num_rollouts=num_rollouts, num_done=num_done)
    update: SearchState = {
        "num_repeats": num_repeats,
        "is_repeat": True,
        "query_ids": query_ids,
        "prefetch_ids": [order[one] for one in ahead],
        "rollouts": None,  # type: ignore[typeddict-item]  # The reducer empties the list; the children stay.
    }
    return update


def _plan_asking_again(session: RunSession, state: SearchState, num_failed: int) -> SearchState:
    """Return what runs again, on the same queries, those of the level's rollouts that are not there any more."""
    session.warn(f"level {state['level']}: {num_failed} answers without a score are asked for again")
    num_rollouts = len(state["rollouts"])
    announce_level(session, state, num_rollouts=num_rollouts, num_done=num_rollouts - num_failed)
    return {
        "is_repeat": True,
        "prefetch_ids": [],
        "rollouts": None,  # type: ignore[typeddict-item]  # The reducer empties the list; the children stay.
    }


async def _record_level(
    session: RunSession, state: SearchState, children: Sequence[CandidateRef], beam: Sequence[CandidateRef]
) -> None:
    await session.archive.put_levels(
        {
            "level": state["level"],
            "query_ids": state["query_ids"],
            "children": [
                {"id": one["id"], "reward": one["reward"], "path_reward": one["path_reward"]} for one in children
            ],
            "beam": [one["id"] for one in beam],
            "is_easy": state["is_easy"],
            "max_depth": state["max_depth"],
        }
    )
