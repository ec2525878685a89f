"""How a search goes on from a scored beam: with a further level, with validation, or not at all."""

from collections.abc import Sequence

from drpo_graph.records import ROOT_ID, CandidateRef
from drpo_graph.search.announce import announce_level, announce_validation
from drpo_graph.search.beam import hash_prompt, is_easy
from drpo_graph.search.levels import has_fixed_queries, has_level, plan_depth, prefetch_indices, query_indices
from drpo_graph.search.reviews import ReviewDecision, find_vetoed
from drpo_graph.search.session import RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.search.validation import Contender, choose_contenders
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import scores_by_candidate


def has_next(state: SearchState, settings: Settings) -> bool:
    """Return whether there can be a level after the scored one."""
    return has_level(
        state["level"] + 1,
        max_depth=state["max_depth"],
        settings=settings,
        num_queries=state["num_queries"],
        num_repeats=state["num_repeats"],
    )


def ends_with(beam: Sequence[CandidateRef], state: SearchState, settings: Settings) -> bool:
    """Return whether the search ends with this beam: no level can follow, or change anything, or need be."""
    if not has_next(state, settings):
        return True
    if settings.stop_reward is not None and any((one["path_reward"] or 0.0) >= settings.stop_reward for one in beam):
        return True
    if settings.is_compat or not all(is_easy(one, settings=settings) for one in beam):
        return False
    # Every candidate would be kept and run on the queries it was just run on.
    return has_fixed_queries(settings, num_queries=state["num_queries"])


async def plan_next(
    session: RunSession,
    state: SearchState,
    beam: Sequence[CandidateRef],
    *,
    settings: Settings,
    decision: ReviewDecision | None = None,
) -> SearchState:
    """Return what the state becomes for the next level, or for validation or conclusion; tell what begins.

    The state's level is scored, and the search goes on from the beam; a person may have decided about both.
    """
    level, num_queries, num_repeats = state["level"] + 1, state["num_queries"], state["num_repeats"]
    edited, vetoed = (frozenset(decision.edits), frozenset(decision.veto)) if decision else (frozenset(), frozenset())
    # An edit is to be scored, whatever the rest of the beam says.
    goes_on = has_next(state, settings) if edited else not ends_with(beam, state, settings)
    failed = {one["candidate_id"] for one in state["rollouts"] if one["is_failed"]}
    easy_ids = {one["id"] for one in beam if is_easy(one, settings=settings, has_failed=one["id"] in failed)} - vetoed
    has_easy = goes_on and bool(easy_ids)
    depth = plan_depth(
        is_easy=has_easy, max_depth=state["max_depth"], num_increases=state["num_increases"], settings=settings
    )
    update: SearchState = {
        "level": level if goes_on else state["level"],
        "max_depth": depth.max_depth,
        "num_increases": depth.num_increases,
        "beam": list(beam),
        "is_easy": has_easy,
        "awaits_review": False,
    }
    if not goes_on:
        return {**update, **await _plan_end(session, state, beam, settings)}
    order = await session.archive.query_order()
    ahead = prefetch_indices(
        level + 1, max_depth=depth.max_depth, settings=settings, num_queries=num_queries, num_repeats=num_repeats
    )
    indices = query_indices(level + num_repeats, settings=settings, num_queries=num_queries)
    update["query_ids"] = [order[one] for one in indices]
    update["prefetch_ids"] = [order[one] for one in ahead]
    # A fork may have other queries than those whose metrics were selected ahead.
    lacks_metrics = None in [await session.archive.metrics_for(one) for one in update["query_ids"]]
    update["selects_inline"] = settings.stop_reward is not None or lacks_metrics
    update["children"] = None  # type: ignore[typeddict-item]  # The reducer empties the list for the new level.
    update["rollouts"] = None  # type: ignore[typeddict-item]
    num_children = len(edited)
    for one in beam:
        if one["id"] not in vetoed:
            is_kept = one["reward"] is None or one["id"] in easy_ids
            num_children += 1 if is_kept else settings.n_actions + settings.keep_parents
    announce_level(session, update, num_rollouts=num_children * len(indices))
    return update


async def _plan_end(
    session: RunSession, state: SearchState, beam: Sequence[CandidateRef], settings: Settings
) -> SearchState:
    if not state["validation_ids"]:
        return {"phase": "conclude"}
    contender_ids = await _choose_contenders(session, beam, num_best=settings.beam_size)
    announce_validation(session, contender_ids, num_rollouts=len(contender_ids) * len(state["validation_ids"]))
    return {
        "phase": "validate",
        "contender_ids": contender_ids,
        "rollouts": None,  # type: ignore[typeddict-item]  # The reducer empties the list for validation.
    }


async def _choose_contenders(session: RunSession, beam: Sequence[CandidateRef], *, num_best: int) -> list[str]:
    others, vetoed = [], await find_vetoed(session.archive)
    for candidate_id, (reward, path_reward) in scores_by_candidate(await session.archive.levels()).items():
        prompt_hash = hash_prompt(await session.archive.prompt_of(candidate_id))
        if (reward is not None and prompt_hash not in vetoed) or candidate_id == ROOT_ID:
            others.append(Contender(candidate_id, prompt_hash, path_reward))
    finalists = [Contender(one["id"], one["prompt_hash"], one["path_reward"]) for one in beam]
    return choose_contenders(finalists, others, num_best=num_best)
