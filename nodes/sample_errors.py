"""Sample the base model's response to a query under a candidate: its errors are what the optimizer learns from."""

from typing import TypedDict

from langgraph.runtime import Runtime
from pydantic import JsonValue

from drpo_graph.context import RunContext, RunSession, session_of
from drpo_graph.errors import ReplyError
from drpo_graph.records import Failure, Query
from drpo_graph.responders import STORED_RESPONSE, ask_responder, response_key
from drpo_graph.rewrite_guards import fill_prompt
from drpo_graph.scheduler import gate_for
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
    own_prompt = await session.archive.prompt_of(state["candidate_id"])
    if runtime.context.components.responder is not None:
        return await _ask_app(runtime.context, session, own_prompt, query)
    prompt = fill_prompt(
        runtime.context.settings,
        own_prompt,
        initial_prompt=await session.archive.prompt_of(ROOT_ID),
        query=query,
    )
    sample = await base.respond(
        base.response_format.render(system_prompt=prompt, query=query.text),
        accepts_empty=runtime.context.settings.is_compat,
    )
    failure = sample.failure.model_dump(mode="json") if sample.failure else None
    return {"response_key": sample.key, "failure": failure}


async def _ask_app(context: RunContext, session: RunSession, prompt: str, query: Query) -> SampleUpdate:
    """Return where the app's response stands; it fills its own placeholders, and is asked once for each prompt."""
    responder = context.components.responder
    assert responder is not None
    key = response_key(prompt, query)

    settings = context.settings
    rate, places = settings.requests_per_second, settings.max_concurrency

    async def ask() -> None:
        async with gate_for(type(responder).__qualname__, max_concurrency=places, requests_per_second=rate).slot():
            response = await ask_responder(responder, prompt, query, timeout_s=settings.timeout_s)
        await session.archive.put("responses", key, {"text": response})

    if await session.archive.get("responses", key) is None:
        try:
            await session.ledger.stop.guard(ask())
        except ReplyError as error:
            failure = Failure(kind=error.kind, detail=str(error))
            return {"response_key": None, "failure": failure.model_dump(mode="json")}
    return {"response_key": STORED_RESPONSE + key, "failure": None}
