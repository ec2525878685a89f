"""What a run that goes on tells first: that it does, and how far its level is."""

from drpo_graph.events.schema import LevelStarted, RunStarted
from drpo_graph.search.forecast import warn_at_resume
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.search.state import SearchState
from drpo_graph.search.validation import ROOT_ID


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
