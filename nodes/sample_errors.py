"""Sample the base model's response to a query under a candidate: its errors are what the optimizer learns from."""

from typing import TypedDict

from langgraph.runtime import Runtime
from pydantic import JsonValue

from drpo_graph.context import RunContext, session_of
from drpo_graph.rewrite_guards import fill_prompt
from drpo_graph.selection import ROOT_ID
from drpo_graph.state import RolloutState


class SampleUpdate(TypedDict):
    """Where the response stands, or why there is none."""

    response_key: str | None
    failure: dict[str, JsonValue] | None


async def sample_errors(state: RolloutState, runtime: Runtime[RunContext]) -> SampleUpdate:
    """Return the ledger key of the response; its text does not pass through the state."""
    session = await session_of(runtime, state["run_id"])
    base, query = session.models.base, await session.archive.query(state["query_id"])
    prompt = fill_prompt(
        runtime.context.settings,
        await session.archive.prompt_of(state["candidate_id"]),
        initial_prompt=await session.archive.prompt_of(ROOT_ID),
        query=query,
    )
    sample = await base.respond(
        base.response_format.render(system_prompt=prompt, query=query.text),
        accepts_empty=runtime.context.settings.is_compat,
    )
    failure = sample.failure.model_dump(mode="json") if sample.failure else None
    return {"response_key": sample.key, "failure": failure}
