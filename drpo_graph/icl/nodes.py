"""The steps of ICL optimisation. Every call goes through the ledger, so a step that runs again pays for nothing."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, cast

from langgraph.runtime import Runtime
from pydantic import JsonValue

from drpo_graph.calls.failed_samples import count_failures
from drpo_graph.errors import DatasetError, ReplyError, SettingsError, StateFormatError
from drpo_graph.events.schema import ICLExampleFinished, ICLFinished, ICLStarted
from drpo_graph.icl.state import (
    DEFAULT_NUM_ITERS,
    DEFAULT_NUM_SAMPLES,
    ExampleState,
    ICLState,
    JudgedRef,
    JudgeTask,
    OutcomeRef,
)
from drpo_graph.models.request import ReplySchema
from drpo_graph.nodes.critique import ask_critic
from drpo_graph.parts.parsing import read_text
from drpo_graph.records import MAX_SCORE, ICLExample, ICLOutcome, ICLResult, Query, Rollout, digest_json
from drpo_graph.retrieval.examples import GivenExamples, as_examples
from drpo_graph.safety.texts import shorten
from drpo_graph.search.announce import report_rollout
from drpo_graph.search.run_names import derive_run_id, open_run
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import STATE_FORMAT
from drpo_graph.storage.archive import Archive, rollout_key

STEP_SIZE: Final = 512
"""Examples of one step of the graph: what a checkpoint holds of those in work is bounded."""
_BATCH: Final = 500
GIVEN_ID = "0.0"
"""The response that an example came with."""


async def start(state: ICLState, runtime: Runtime[RunContext]) -> ICLState:
    """Lay down examples and fingerprints.

    Raises:
        DatasetError: there is no example, one is malformed, or two share a query.
    """
    given = state.get("examples")
    shape: dict[str, Any] = {
        "num_iters": state.get("num_iters", DEFAULT_NUM_ITERS),
        "num_samples": state.get("num_samples", DEFAULT_NUM_SAMPLES),
    }
    if not all(isinstance(number, int) and number >= 1 for number in shape.values()):
        raise SettingsError(f"num_iters and num_samples: expected whole numbers from 1 on, got {shape}.")
    if given is None:
        # Whoever started the run has laid them down: every copy of the input would repeat them.
        session = await session_of(runtime, derive_run_id())
    else:
        examples = as_examples(cast(GivenExamples, given))
        data = digest_json([[one.query, one.response] for one in examples])
        session = await open_run(runtime, {"data": data, **shape})
        await lay_down(session.archive, examples)
    num_examples = await _count_laid_down(session.archive)
    state = cast(ICLState, {**dict(state), **shape})
    announce_run(session, runtime.context, state, num_examples=num_examples)
    fingerprints = {**runtime.context.fingerprints(), "icl": runtime.context.prompts.response_fingerprint}
    # The texts are in the archive now; every checkpoint would repeat them.
    return {
        "format": STATE_FORMAT,
        "run_id": session.run_id,
        "fingerprints": fingerprints,
        "num_examples": num_examples,
        "position": 0,
        "query_ids": [],
        "examples": [],
        "num_iters": shape["num_iters"],
        "num_samples": shape["num_samples"],
    }


async def lay_down(archive: Archive, examples: Sequence[ICLExample]) -> None:
    """Store the examples by number, a batch at a time, and how many they are; all are stored, since all are used."""
    numbered = iter(enumerate(examples, 1))
    while batch := {name_example(number): one for number, one in islice(numbered, _BATCH)}:
        queries = {key: Query(id=key, text=one.query).model_dump(mode="json") for key, one in batch.items()}
        await archive.put_all("queries", queries)
        responses = {response_key(key, GIVEN_ID): {"response": one.response} for key, one in batch.items()}
        await archive.put_all("expansions", responses)
    await archive.put("run", "plan", {"num_examples": len(examples)})


async def advance(state: ICLState, runtime: Runtime[RunContext]) -> ICLState:
    """Choose the examples of the next step, after the last one those to begin again, then none. No model call."""
    if "num_examples" not in state:
        # A run of an earlier version, which took all examples in one step.
        return {"num_examples": len(state["query_ids"]), "query_ids": []}
    position = min(state["position"] + STEP_SIZE, state["num_examples"])
    query_ids = [name_example(one) for one in range(state["position"] + 1, position + 1)]
    if not query_ids:
        return await _begin_again(state, runtime)
    return {"position": position, "query_ids": query_ids}


async def _begin_again(state: ICLState, runtime: Runtime[RunContext]) -> ICLState:
    """Choose the next examples that could not be scored, where the user has let them be asked for again since."""
    reward_by_id = {one["query_id"]: one["reward"] for one in state.get("outcomes", [])}
    unscored = [one + 1 for one in range(state["num_examples"]) if reward_by_id.get(name_example(one + 1), 0) is None]
    update: ICLState = {"query_ids": []}
    if not unscored:
        return update
    num_asked = (await session_of(runtime, state["run_id"])).ledger.failures.num_asked
    if num_asked > state.get("num_asked_again", 0):
        begun = [one for one in unscored if one > state.get("position_again", 0)][:STEP_SIZE]
        update["query_ids"] = [name_example(one) for one in begun]
        update["position_again"] = begun[-1] if begun else 0
        update["num_asked_again"] = state.get("num_asked_again", 0) if begun else num_asked
    return update


def name_example(number: int) -> str:
    """Return the id of an example by its number, from 1 on."""
    return f"icl-{number:03d}"


def announce_run(
    session: RunSession, context: RunContext, state: ICLState, *, num_examples: int, is_resumed: bool = False
) -> None:
    """Tell that a run begins, or goes on, and with what; nobody is asked to respond."""
    session.emitter.emit(
        ICLStarted(
            run_id=session.run_id,
            is_resumed=is_resumed,
            num_examples=num_examples,
            num_iters=state["num_iters"],
            num_samples=state["num_samples"],
            models={role: client.settings.model for role, client in context.clients.items() if role != "base"},
            former_s=session.ledger.budget.former_s,
        )
    )


async def announce_resume(session: RunSession, context: RunContext, values: Mapping[str, Any]) -> None:
    """Tell that a run goes on from a stored state."""
    state = cast(ICLState, values)
    # A run of an earlier version has all of them in one step.
    num_examples = state.get("num_examples", len(state["query_ids"]))
    announce_run(session, context, state, num_examples=num_examples, is_resumed=True)


async def judge(state: JudgeTask, runtime: Runtime[RunContext]) -> dict[str, list[JudgedRef]]:
    """Return one response's reward; one that cannot be scored stays unscored, with its reason."""
    session = await session_of(runtime, state["run_id"])
    query_id, response_id = state["query_id"], state["response_id"]
    former = await session.archive.record("rollouts", rollout_key(response_id, query_id), Rollout)
    if former is None or (former.failure is not None and session.ledger.failures.num_asked):
        # What failed since it was last allowed to be asked again is found in the ledger, as it was.
        response = await _response(session, query_id, response_id)
        unscored = Rollout(candidate_id=response_id, query_id=query_id, response=response, critique=None, reward=None)
        rollout = await ask_critic(unscored, response, runtime.context, session=session)
        await session.archive.put_rollout(rollout)
    else:
        rollout = former
    report_rollout(session, rollout, level=int(response_id.partition(".")[0]))
    return {"judged": [{"response_id": response_id, "reward": rollout.reward}]}


async def choose(state: ExampleState, runtime: Runtime[RunContext]) -> ExampleState:
    """Keep the best response so far, the first of equals, and say whether the example is done."""
    session = await session_of(runtime, state["run_id"])
    iteration = state.get("iteration", 0)
    reward_by_id = {one["response_id"]: one["reward"] for one in state.get("judged", [])}
    if iteration == 0:
        best: JudgedRef = {"response_id": GIVEN_ID, "reward": reward_by_id[GIVEN_ID]}
        initial_reward = best["reward"]
    else:
        best, initial_reward = state["best"], state["initial_reward"]
        for response_id in state["response_ids"]:
            reward = reward_by_id.get(response_id)
            if reward is not None and (best["reward"] is None or reward > best["reward"]):
                best = {"response_id": response_id, "reward": reward}
    # Without a critique there is nothing to rewrite from.
    is_done = best["reward"] is None or best["reward"] >= MAX_SCORE or iteration >= state["num_iters"]
    update: ExampleState = {  # type: ignore[typeddict-item]  # Only changed keys.
        "iteration": iteration,
        "best": best,
        "initial_reward": initial_reward,
        "is_done": is_done,
        "judged": None,  # type: ignore[typeddict-item]  # The reducer empties the list.
    }
    if is_done:
        outcome: OutcomeRef = {
            "query_id": state["query_id"],
            "best_id": best["response_id"],
            "initial_reward": initial_reward,
            "reward": best["reward"],
            "iterations": iteration,
        }
        update["outcomes"] = [outcome]
        await _report(session, outcome)
    return update


async def rewrite(state: ExampleState, runtime: Runtime[RunContext]) -> ExampleState:
    """Ask the optimizer for better responses than the best one so far; a round without any is told."""
    session, settings = await session_of(runtime, state["run_id"]), runtime.context.settings
    iteration, query_id = state["iteration"] + 1, state["query_id"]
    rollout = await session.archive.rollout(state["best"]["response_id"], query_id)
    query = await session.archive.query(query_id)
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {"analysis": {"type": "string"}, "new_response": {"type": "string"}},
        "required": ["analysis", "new_response"],
        "additionalProperties": False,
    }
    samples = await session.models.optimizer.ask(
        runtime.context.prompts.render_rewrite_response(query, rollout),
        parse=parse_response,
        schema=ReplySchema("rewrite_response", schema),
        num_samples=state["num_samples"],
        seed=random.Random(f"{settings.seed}/icl/{query_id}/{iteration}").randrange(2**31),
    )
    responses = {f"{iteration}.{n}": one.value for n, one in enumerate(samples) if one.value is not None}
    if responses:
        stored = {response_key(query_id, one): {"response": text} for one, text in responses.items()}
        await session.archive.put_all("expansions", stored)
    else:
        why = samples[0].failure.detail if samples and samples[0].failure else "no reply"
        session.warn(f"{query_id}, iteration {iteration}: no usable rewrite ({why})")
    return {  # type: ignore[typeddict-item]  # Only changed keys.
        "iteration": iteration,
        "response_ids": list(responses),
    }


async def conclude(state: ICLState, runtime: Runtime[RunContext]) -> ICLState:
    """Return the run's result. No model call."""
    session = await session_of(runtime, state["run_id"])
    by_id = {one["query_id"]: one for one in state["outcomes"]}
    outcomes = [await _describe(session, by_id[name_example(one + 1)]) for one in range(state["num_examples"])]
    failures = session.ledger.retries_by_kind + count_failures(await session.archive.get_all("failures"))
    for rollout in (await session.archive.records("rollouts", Rollout)).values():
        if rollout.failure is not None:
            failures[rollout.failure.kind] += 1
    result = ICLResult(
        thread_id=state["run_id"],
        status="done",
        num_iters=state["num_iters"],
        num_samples=state["num_samples"],
        examples=tuple(outcomes),
        num_unscored=sum(one.reward is None for one in outcomes),
        usage_by_role=dict(sorted(session.ledger.usage_by_role.items())),
        cost_by_role=dict(sorted(session.ledger.cost_by_role.items())),
        failures_by_kind=dict(sorted(failures.items())),
        fingerprints=state["fingerprints"],
    )
    stored_result: dict[str, JsonValue] = result.model_dump(mode="json")
    await session.archive.put("run", "icl_result", stored_result)
    session.emitter.emit(ICLFinished(run_id=session.run_id, result=result))
    await session.ledger.drain()
    runtime.context.close_session(session.run_id)
    return {"result": stored_result}


def parse_response(text: str) -> str:
    """Return the new response in an optimizer's reply.

    Raises:
        ReplyError: no JSON object, no response in it, or the placeholder of one alone.
    """
    response = read_text(text, "new_response")
    if not isinstance(response, str) or not response.strip():
        raise ReplyError("expected a text under 'new_response'")
    response = response.strip()
    if response == "<the complete new answer>":
        # Weak models hand the form back as they were shown it.
        raise ReplyError(f"expected a response, got what stands in its place: {shorten(response)}")
    return response


def response_key(query_id: str, response_id: str) -> str:
    """Return the archive key of one response's text."""
    return f"{query_id}/{response_id}"


async def _count_laid_down(archive: Archive) -> int:
    stored = await archive.get("run", "plan")
    if stored is None:
        raise DatasetError("No ICL examples were given: expected at least one.")
    return cast(int, stored["num_examples"])


async def _response(session: RunSession, query_id: str, response_id: str) -> str:
    stored = await session.archive.get("expansions", response_key(query_id, response_id))
    if stored is None:
        raise StateFormatError(f"Run {session.run_id!r}: its store lacks response {response_id} of {query_id}.")
    return str(stored["response"])


async def _report(session: RunSession, outcome: OutcomeRef) -> None:
    described = await _describe(session, outcome)
    session.emitter.emit(
        ICLExampleFinished(
            run_id=session.run_id,
            example_id=described.id,
            initial_reward=described.initial_reward,
            reward=described.reward,
            iterations=described.iterations,
            detail=described.failure.detail if described.failure else "",
        )
    )


async def _describe(session: RunSession, outcome: OutcomeRef) -> ICLOutcome:
    query_id = outcome["query_id"]
    return ICLOutcome(
        id=query_id,
        query=(await session.archive.query(query_id)).text,
        response=await _response(session, query_id, outcome["best_id"]),
        initial_reward=outcome["initial_reward"],
        reward=outcome["reward"],
        iterations=outcome["iterations"],
        failure=(await session.archive.rollout(GIVEN_ID, query_id)).failure,
    )
