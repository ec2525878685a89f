"""Sample the base model's response to a query under a candidate: its errors are what the optimizer learns from."""

from collections.abc import Sequence
from typing import TypedDict, cast

from langgraph.runtime import Runtime
from pydantic import JsonValue

from drpo_graph.errors import ReplyError
from drpo_graph.models.endpoint_gate import gate_for
from drpo_graph.parts.own_answers import take_examples
from drpo_graph.parts.own_code import call_own
from drpo_graph.parts.responders import STORED_RESPONSE, ask_responder, identify_responder, response_key
from drpo_graph.parts.rewrite_guards import fill_prompt
from drpo_graph.prompts.library import history_of
from drpo_graph.records import ROOT_ID, Failure, ICLExample, Query
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import RolloutState


class SampleUpdate(TypedDict):
    """Where the response stands, or why there is none."""

    response_key: str | None
    failure: dict[str, JsonValue] | None


async def sample_errors(state: RolloutState, runtime: Runtime[RunContext]) -> SampleUpdate:
    """Return the ledger key of the response; its text does not pass through the state.

    With retrieval, the response is sampled beside the ICL examples that resemble the query.
    """
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
    try:
        examples = await _find_examples(query, session, runtime.context)
    except ReplyError as error:
        return _without(error)
    sample = await base.respond(
        base.response_format.render(
            system_prompt=prompt, query=query.text, examples=examples, history=history_of(query)
        ),
        accepts_empty=runtime.context.settings.is_compat,
    )
    failure = sample.failure.model_dump(mode="json") if sample.failure else None
    return {"response_key": sample.key, "failure": failure}


async def _find_examples(query: Query, session: RunSession, context: RunContext) -> Sequence[ICLExample]:
    """Return the query's examples: found once, then in the archive, for all candidates that are run on it."""
    if context.components.example_retriever is None:
        return ()
    examples = await _kept_examples(query, session, context)
    if examples is None:
        # Siblings on one query ask at the same moment; they share one search.
        await session.shared_work.share(f"examples/{query.id}", lambda: _retrieve(query, session, context))
        examples = await _kept_examples(query, session, context)
    assert examples is not None, "they were just put there"
    return examples


async def _retrieve(query: Query, session: RunSession, context: RunContext) -> None:
    retriever = context.components.example_retriever
    assert retriever is not None, "only asked for where there is one"

    called = f"query {query.id!r}: the example retriever"

    async def retrieve() -> None:
        with session.embeddings.bound():
            said: object = await call_own(
                retriever.retrieve,
                query.text,
                k=context.settings.k,
                called=called,
                timeout_s=context.settings.timeout_s,
                is_bounded=False,
            )
        examples: list[JsonValue] = [one.model_dump(mode="json") for one in take_examples(said, called=called)]
        await session.archive.put("examples", query.id, {"source": _source_of(context), "examples": examples})

    await session.ledger.stop.guard(retrieve())


async def _kept_examples(query: Query, session: RunSession, context: RunContext) -> list[ICLExample] | None:
    kept = await session.archive.get("examples", query.id)
    if kept is None or kept["source"] != _source_of(context):
        return None
    return [ICLExample.model_validate(example) for example in cast(list[JsonValue], kept["examples"])]


def _source_of(context: RunContext) -> list[JsonValue]:
    """Return what decides which examples a query gets: with --force a resumed run may have another."""
    components, settings = context.components, context.settings
    return [type(components.example_retriever).__qualname__, components.data_digest, settings.embeddings, settings.k]


async def _ask_app(context: RunContext, session: RunSession, prompt: str, query: Query) -> SampleUpdate:
    """Return where the app's response stands; it fills its own placeholders, and is asked once for each prompt."""
    responder = context.components.responder
    assert responder is not None
    key, app = response_key(prompt, query), identify_responder(responder)

    settings = context.settings
    rate, places = settings.requests_per_second, settings.max_concurrency

    async def ask() -> None:
        async with gate_for(type(responder).__qualname__, max_concurrency=places, requests_per_second=rate).slot():
            response = await ask_responder(responder, prompt, query, timeout_s=settings.timeout_s)
        await session.archive.put("responses", key, {"text": response, "app": app})

    kept = await session.archive.get("responses", key)
    # A fork may ask another app.
    if kept is None or kept.get("app", app) != app:
        try:
            await session.ledger.stop.guard(ask())
        except ReplyError as error:
            return _without(error)
    return {"response_key": STORED_RESPONSE + key, "failure": None}


def _without(error: ReplyError) -> SampleUpdate:
    """Return that there is no response, and why."""
    failure = Failure(kind=error.kind, detail=str(error))
    return {"response_key": None, "failure": failure.model_dump(mode="json")}
