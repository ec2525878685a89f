"""Rewrite a candidate's prompt from the criticism of its responses, unless it is good enough to be kept."""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from langgraph.runtime import Runtime
from pydantic import JsonValue

from drpo_graph.errors import ReplyError
from drpo_graph.models.tracing import calling_for
from drpo_graph.parts.own_answers import take_rewrites
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.protocols import RewriteRequest
from drpo_graph.parts.rewrite_guards import make_guard
from drpo_graph.records import ROOT_ID, CandidateRef, Origin, Query, Rollout
from drpo_graph.search.announce import announce_candidate
from drpo_graph.search.beam import hash_prompt, is_easy, refer_to
from drpo_graph.search.reviews import find_decision, find_vetoed
from drpo_graph.search.screening import screen_rewrites
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import ExpandState
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import StoredCandidate


class _Child(NamedTuple):
    """A child that is to be made."""

    origin: Origin
    prompt: str
    author: str | None = None


class _Plan(NamedTuple):
    """The children that are to be made, in creation order."""

    children: list[_Child]
    screening: dict[str, JsonValue] | None = None
    """Which of the rewrites they are, where more were written."""


class RewriteUpdate(TypedDict):
    """The children that join the level."""

    children: list[CandidateRef]


async def rewrite_prompts(state: ExpandState, runtime: Runtime[RunContext]) -> RewriteUpdate:
    """Return the candidate's children: rewrites, and itself where it is kept.

    An easy candidate is kept as it is. So is an unscored one, whose next critique may come out on other queries. Where
    no rewrite can be had, the candidate is kept too, rather than lost.
    """
    session = await session_of(runtime, state["run_id"])
    parent = state["parent"]
    children = await _find_children(session, state)
    if children is None:
        prompt = await session.archive.prompt_of(parent["id"])
        plan = await _plan_reviewed(state, runtime.context, session, prompt)
        children = [_describe(state, place, one) for place, one in enumerate(plan.children)]
        await session.archive.put_candidates(children)
        expansion: dict[str, JsonValue] = {"children": [child["id"] for child in children]}
        if plan.screening is not None:
            expansion["screening"] = plan.screening
        await session.archive.put("expansions", f"{state['level']}.{state['beam_rank']}", expansion)
    for child in children:
        announce_candidate(session, child)
    return {"children": [_refer(child, parent, runtime.context.settings) for child in children]}


async def _plan_reviewed(state: ExpandState, context: RunContext, session: RunSession, prompt: str) -> _Plan:
    """Return the children with a person's edit of the candidate, if there is one, as the last or the only one."""
    decision = await find_decision(session.archive, state["level"] - 1)
    parent_id = state["parent"]["id"]
    edit = decision.edits.get(parent_id) if decision else None
    if decision is None or edit is None:
        return await _plan_children(state, context, session, prompt)
    edited = _Child("human", edit, decision.author)
    if parent_id in decision.veto:
        return _Plan([edited])
    plan = await _plan_children(state, context, session, prompt)
    return plan._replace(children=[*plan.children, edited])


async def _plan_children(state: ExpandState, context: RunContext, session: RunSession, prompt: str) -> _Plan:
    """Return origin and prompt of each child."""
    settings, parent = context.settings, state["parent"]
    rollouts = [await session.archive.rollout(parent["id"], query_id) for query_id in parent["query_ids"]]
    has_failed = any(rollout.failure is not None for rollout in rollouts)
    # On new queries its critique may come out; on the same ones it would fail again, so it is rewritten blind.
    awaits_critique = parent["reward"] is None and parent["query_ids"] != state["query_ids"]
    if awaits_critique or is_easy(parent, settings=settings, has_failed=has_failed):
        return _Plan([_Child("kept", prompt)])
    examples = [(await session.archive.query(one.query_id), one) for one in rollouts if one.critique is not None]
    # What a person has ruled out is not tried again.
    vetoed = await find_vetoed(session.archive)
    proposed = await _rewrite(state, context, session, prompt, examples)
    with session.embeddings.bound():
        screened = await screen_rewrites(
            [one for one in proposed if hash_prompt(one) not in vetoed],
            state,
            screen=context.components.screen,
            settings=settings,
            archive=session.archive,
        )
    children = [_Child("rewrite", one) for one in screened.rewrites]
    if settings.keep_parents or not children:
        children.append(_Child("kept", prompt))
    return _Plan(children, screened.record)


async def _rewrite(
    state: ExpandState,
    context: RunContext,
    session: RunSession,
    prompt: str,
    examples: Sequence[tuple[Query, Rollout]],
) -> list[str]:
    settings, parent = context.settings, state["parent"]
    former = [await session.archive.prompt_of(one) for one in parent["lineage"][:-1]]
    seed = random.Random(f"{settings.seed}/rewrite/{state['level']}/{state['beam_rank']}").randrange(2**31)
    request = RewriteRequest(
        candidate_id=parent["id"],
        prompt=prompt,
        former_prompts=former,
        examples=examples,
        num_rewrites=settings.num_proposed,
        # The published code sends 0 with every request.
        seed=0 if settings.is_compat else seed,
        rejected=await session.archive.rejected_rewrites(),
        guard=make_guard(
            settings,
            initial_prompt=await session.archive.prompt_of(ROOT_ID),
            prompt=prompt,
            former_prompts=former,
            examples=examples,
        ),
    )
    try:
        with calling_for(candidate_id=parent["id"]):
            said: object = await call_own(
                context.components.rewriter.rewrite,
                request,
                models=session.models,
                called="the rewriter",
                timeout_s=settings.timeout_s,
                is_bounded=False,
            )
        return _keep_usable(session, request, take_rewrites(said))
    except ReplyError as error:
        session.warn(f"{error}; the candidate is kept as it is")
        return []


def _keep_usable(session: RunSession, request: RewriteRequest, rewrites: Sequence[str]) -> list[str]:
    """Return the rewrites that can be used, the first ones where there are more than were asked for.

    Ours are checked as they are parsed, those of another rewriter here.
    """
    usable = []
    for rewrite in rewrites:
        try:
            usable.append(request.guard.check(rewrite))
        except ReplyError as error:
            session.warn(f"a rewrite of candidate {request.candidate_id!r} is not used: {error}")
    return usable[: request.num_rewrites]


async def _find_children(session: RunSession, state: ExpandState) -> list[StoredCandidate] | None:
    """Return the children that this run made before it was interrupted, if it did."""
    stored = await session.archive.get("expansions", f"{state['level']}.{state['beam_rank']}")
    if stored is None:
        return None
    ids = stored["children"]
    assert isinstance(ids, list)
    return [await session.archive.candidate(str(one)) for one in ids]


def _describe(state: ExpandState, place: int, child: _Child) -> StoredCandidate:
    described: StoredCandidate = {
        "id": f"{state['level']}.{state['beam_rank']}.{place}",
        "parent_id": state["parent"]["id"],
        "depth": state["level"],
        "origin": child.origin,
        "prompt": child.prompt,
    }
    if child.author is not None:
        described["author"] = child.author
    return described


def _refer(child: StoredCandidate, parent: CandidateRef, settings: Settings) -> CandidateRef:
    # A kept prompt is no new version, so it takes no place in the history; the published code repeats it.
    is_new = child["origin"] in ("rewrite", "human") or settings.is_compat
    lineage = [*parent["lineage"], child["id"]] if is_new else parent["lineage"]
    return refer_to(child, lineage=lineage[-settings.history_window :], parent=parent)
