"""What the search tells of a run, its candidates, levels and rollouts: each event is made here."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from drpo_graph.events.schema import (
    BeamEntry,
    CandidateCreated,
    LevelFinished,
    LevelStarted,
    Remaining,
    RolloutScored,
    RunStarted,
    ValidationStarted,
)
from drpo_graph.records import ROOT_ID, CandidateRef, Rollout
from drpo_graph.search.forecast import warn_at_resume
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.storage.archive import StoredCandidate, rollout_key

ROLLOUT_LOGGER = logging.getLogger("drpo_graph.rollouts")
"""Takes responses, for the log file of their run alone: no handler of the host's is to write them."""
ROLLOUT_LOGGER.propagate = False
ROLLOUT_LOGGER.setLevel(logging.INFO)


def announce_run(
    session: RunSession, context: RunContext, *, prompt: str, num_queries: int, is_resumed: bool = False
) -> None:
    """Tell that a run begins, or goes on, and with what."""
    settings = context.settings
    session.emitter.emit(
        RunStarted(
            run_id=session.run_id,
            is_resumed=is_resumed,
            num_queries=num_queries,
            num_levels=settings.num_levels,
            beam_size=settings.beam_size,
            n_actions=settings.n_actions,
            queries_per_level=settings.queries_per_level,
            models={role: client.settings.model for role, client in context.clients.items()},
            initial_prompt=prompt,
            max_concurrency=settings.max_concurrency,
            former_s=session.ledger.budget.former_s,
        )
    )


def announce_candidate(session: RunSession, candidate: StoredCandidate) -> None:
    """Tell that a candidate was made."""
    session.emitter.emit(
        CandidateCreated(
            run_id=session.run_id,
            candidate_id=candidate["id"],
            parent_id=candidate["parent_id"],
            depth=candidate["depth"],
            origin=candidate["origin"],
            prompt=candidate["prompt"],
            author=candidate.get("author"),
        )
    )


def announce_level(session: RunSession, state: SearchState, *, num_rollouts: int, num_done: int = 0) -> None:
    """Tell that the state's level is in work, and how much of it there is to do."""
    session.emitter.emit(
        LevelStarted(
            run_id=session.run_id,
            level=state["level"],
            max_depth=state["max_depth"],
            query_ids=tuple(state["query_ids"]),
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
    """Tell how a level came out, what the run has used, and what is left to do."""
    session.emitter.emit(
        LevelFinished(
            run_id=session.run_id,
            level=state["level"],
            max_depth=state["max_depth"],
            beam=tuple(
                BeamEntry(
                    candidate_id=one["id"], reward=one["reward"], path_reward=one["path_reward"], origin=one["origin"]
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
    """Tell how a response was scored, or why it was not; the log file alone is told the response itself."""
    _log_rollout(session.run_id, rollout, level)
    session.emitter.emit(
        RolloutScored(
            run_id=session.run_id,
            candidate_id=rollout.candidate_id,
            query_id=rollout.query_id,
            level=level,
            reward=rollout.reward,
            rollout_id=rollout_key(rollout.candidate_id, rollout.query_id),
            failure_kind=rollout.failure.kind if rollout.failure else None,
            detail=rollout.failure.detail if rollout.failure else "",
        )
    )


def _log_rollout(run_id: str, rollout: Rollout, level: int) -> None:
    if not ROLLOUT_LOGGER.handlers:
        return
    scores = rollout.critique.scores if rollout.critique else ()
    told = ", ".join(f"{one.metric} {one.score}" for one in scores)
    failure = f"{rollout.failure.kind}: {rollout.failure.detail}" if rollout.failure else "unscored"
    ROLLOUT_LOGGER.info(
        "level %s: %s on %s: reward %s (%s); response: %s",
        level,
        rollout.candidate_id,
        rollout.query_id,
        "-" if rollout.reward is None else f"{rollout.reward:.2f}",
        told or failure,
        rollout.response,
        extra={"run_id": run_id},
    )


def announce_validation(session: RunSession, candidate_ids: Sequence[str], *, num_rollouts: int) -> None:
    """Tell that contenders are compared on held-out queries."""
    session.emitter.emit(
        ValidationStarted(run_id=session.run_id, candidate_ids=tuple(candidate_ids), num_rollouts=num_rollouts)
    )


async def announce_resume(session: RunSession, context: RunContext, values: Mapping[str, Any]) -> None:
    """Tell that a run goes on from a stored state: with what, and with how much of its level done."""
    state = cast(SearchState, values)
    prompt = await session.archive.prompt_of(ROOT_ID)
    announce_run(session, context, prompt=prompt, num_queries=state["num_queries"], is_resumed=True)
    level, settings = state["level"], context.settings
    prefix = f"{level}." if level else f"{ROOT_ID}/"
    num_done = sum(key.startswith(prefix) for key in await session.archive.get_all("rollouts"))
    per_parent = settings.n_actions + settings.keep_parents
    expected = len(state["query_ids"]) * (max(1, len(state["beam"])) * per_parent if level else 1)
    announce_level(session, state, num_rollouts=max(expected, num_done), num_done=num_done)
    await warn_at_resume(session, context, state)
