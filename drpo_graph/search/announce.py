"""What the search tells: each of its events is made here, but for those of one node alone."""

from collections.abc import Collection, Sequence

from drpo_graph.events.schema import (
    BeamEntry,
    CandidateCreated,
    LevelFinished,
    LevelStarted,
    Remaining,
    RolloutScored,
    RunStarted,
)
from drpo_graph.records import ROOT_ID, CandidateRef, Rollout
from drpo_graph.search.forecast import warn_at_resume
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.settings.settings import Settings


async def announce_resume(session: RunSession, context: RunContext, state: SearchState) -> None:
    """Tell that a run goes on: with what, and with how much of its level done."""
    settings = context.settings
    session.emitter.emit(
        RunStarted(
            run_id=session.run_id,
            is_resumed=True,
            num_queries=state["num_queries"],
            num_levels=settings.num_levels,
            beam_size=settings.beam_size,
            n_actions=settings.n_actions,
            queries_per_level=settings.queries_per_level,
            models={role: client.settings.model for role, client in context.clients.items()},
            initial_prompt=await session.archive.prompt_of(ROOT_ID),
        )
    )
    level = state["level"]
    prefix = f"{level}." if level else f"{ROOT_ID}/"
    done = [key for key in await session.archive.get_all("rollouts") if key.startswith(prefix)]
    per_parent = settings.n_actions + settings.keep_parents
    expected = len(state["query_ids"]) * (max(1, len(state["beam"])) * per_parent if level else 1)
    session.emitter.emit(
        LevelStarted(
            run_id=session.run_id,
            level=level,
            max_depth=state["max_depth"],
            query_ids=tuple(state["query_ids"]),
            num_rollouts=max(expected, len(done)),
            num_done=len(done),
        )
    )
    await warn_at_resume(session, context, state)


def announce_start(
    session: RunSession, context: RunContext, *, prompt: str, num_queries: int, query_ids: Sequence[str]
) -> None:
    settings = context.settings
    session.emitter.emit(
        RunStarted(
            run_id=session.run_id,
            is_resumed=False,
            num_queries=num_queries,
            num_levels=settings.num_levels,
            beam_size=settings.beam_size,
            n_actions=settings.n_actions,
            queries_per_level=settings.queries_per_level,
            models={role: client.settings.model for role, client in context.clients.items()},
            initial_prompt=prompt,
        )
    )
    session.emitter.emit(
        CandidateCreated(
            run_id=session.run_id, candidate_id="0", parent_id=None, depth=0, origin="initial", prompt=prompt
        )
    )
    session.emitter.emit(
        LevelStarted(
            run_id=session.run_id,
            level=0,
            max_depth=settings.num_levels,
            query_ids=tuple(query_ids),
            num_rollouts=len(query_ids),
        )
    )


def announce_again(
    session: RunSession, state: SearchState, query_ids: Sequence[str], *, num_rollouts: int, num_done: int
) -> None:
    session.emitter.emit(
        LevelStarted(
            run_id=session.run_id,
            level=state["level"],
            max_depth=state["max_depth"],
            query_ids=tuple(query_ids),
            num_rollouts=num_rollouts,
            num_done=num_done,
        )
    )


def report_level(
    session: RunSession,
    state: SearchState,
    children: Sequence[CandidateRef],
    beam: Sequence[CandidateRef],
    *,
    remaining: Remaining,
) -> None:
    session.emitter.emit(
        LevelFinished(
            run_id=session.run_id,
            level=state["level"],
            max_depth=state["max_depth"],
            beam=tuple(
                BeamEntry(
                    candidate_id=one["id"],
                    reward=one["reward"],
                    path_reward=one["path_reward"],
                    origin=one["origin"],
                )
                for one in beam
            ),
            num_children=len(children),
            num_unscored=sum(one["reward"] is None for one in children),
            is_easy=state["is_easy"],
            usage=session.ledger.total_usage(),
            cost_usd=session.ledger.total_cost,
            remaining=remaining,
        )
    )


def report_rollout(session: RunSession, rollout: Rollout, level: int) -> None:
    session.emitter.emit(
        RolloutScored(
            run_id=session.run_id,
            candidate_id=rollout.candidate_id,
            query_id=rollout.query_id,
            level=level,
            reward=rollout.reward,
            failure_kind=rollout.failure.kind if rollout.failure else None,
            detail=rollout.failure.detail if rollout.failure else "",
        )
    )


def announce_level(
    session: RunSession,
    update: SearchState,
    easy_ids: Collection[str],
    *,
    settings: Settings,
    edited: Collection[str],
    vetoed: Collection[str],
) -> None:
    num_children = len(edited)
    for one in update["beam"]:
        if one["id"] not in vetoed:
            is_kept = one["reward"] is None or one["id"] in easy_ids
            num_children += 1 if is_kept else settings.n_actions + settings.keep_parents
    session.emitter.emit(
        LevelStarted(
            run_id=session.run_id,
            level=update["level"],
            max_depth=update["max_depth"],
            query_ids=tuple(update["query_ids"]),
            num_rollouts=num_children * len(update["query_ids"]),
        )
    )
