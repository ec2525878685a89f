"""Score one response on its query's metrics."""

from langgraph.runtime import Runtime

from drpo_graph.calls.ledger import CallRecord
from drpo_graph.calls.roles import response_text
from drpo_graph.errors import ReplyError, StateFormatError
from drpo_graph.parts.own_answers import take_critique
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.responders import STORED_RESPONSE
from drpo_graph.records import Critique, Failure, Rollout
from drpo_graph.search.announce import report_rollout
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import RolloutOutput, RolloutState
from drpo_graph.storage.archive import rollout_key


async def critique(state: RolloutState, runtime: Runtime[RunContext]) -> RolloutOutput:
    """Return the finished rollout's reward; its texts go to the archive.

    A response that cannot be scored stays unscored, with its reason. Under compat it counts 0, as published.
    """
    session = await session_of(runtime, state["run_id"])
    stored = await session.archive.get("rollouts", rollout_key(state["candidate_id"], state["query_id"]))
    if stored is None:
        rollout = await _score(state, runtime.context, session)
        await session.archive.put_rollout(rollout)
    else:
        # Scored by this run before it was interrupted: a reward function is not called twice either.
        rollout = Rollout.model_validate(stored)
    report_rollout(session, rollout, state["level"])
    return {
        "rollouts": [
            {
                "candidate_id": rollout.candidate_id,
                "query_id": rollout.query_id,
                "reward": rollout.reward,
                "is_failed": rollout.failure is not None,
            }
        ]
    }


async def _score(state: RolloutState, context: RunContext, session: RunSession) -> Rollout:
    response = await _read_response(state, session)
    unscored = Rollout(
        candidate_id=state["candidate_id"],
        query_id=state["query_id"],
        response=response,
        critique=None,
        reward=0.0 if context.settings.is_compat else None,
        failure=Failure.model_validate(state["failure"]) if state.get("failure") else None,
    )
    return unscored if response is None else await ask_critic(unscored, response, context, session=session)


async def ask_critic(rollout: Rollout, response: str, context: RunContext, *, session: RunSession) -> Rollout:
    """Return an unscored rollout with its response's critique, or with the reason why there is none."""
    query = await session.archive.query(rollout.query_id)
    selection = await session.archive.metrics_for(query.id)
    if selection is None:
        raise StateFormatError(f"Run {session.run_id!r}: query {query.id!r} has no metrics in the run's store.")
    critic, failure = context.components.critic, rollout.failure
    scored: Critique | None = None
    try:
        said: object = await call_own(
            critic.critique,
            query,
            response,
            selection=selection,
            models=session.models,
            called="the critic",
            timeout_s=context.settings.timeout_s,
            is_bounded=False,
        )
        scored = take_critique(said)
    except ReplyError as error:
        failure = Failure(kind=error.kind, detail=str(error))
    reward = scored.reward if scored is not None else rollout.reward
    return Rollout.model_validate({**dict(rollout), "critique": scored, "reward": reward, "failure": failure})


async def _read_response(state: RolloutState, session: RunSession) -> str | None:
    key = state.get("response_key")
    if key is None:
        return None
    if key.startswith(STORED_RESPONSE):
        stored = await session.archive.get("responses", key.removeprefix(STORED_RESPONSE))
        if stored is None:
            raise StateFormatError(f"Run {session.run_id!r}: its store does not hold a response that it needs.")
        return str(stored["text"])
    stored = await session.archive.get("calls", key)
    if stored is None:
        raise StateFormatError(f"Run {session.run_id!r}: its store does not hold call {key[:12]}, a response it needs.")
    choice = CallRecord.model_validate(stored).choices[0]
    return response_text(choice, session.models.base.response_format, accepts_empty=True)
