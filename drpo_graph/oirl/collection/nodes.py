"""The steps of a collection. Every call goes through the ledger, so a step that runs again pays for nothing."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from langgraph.runtime import Runtime
from pydantic import JsonValue, ValidationError

from drpo_graph.calls.failed_samples import count_failures
from drpo_graph.calls.ledger import CallRecord
from drpo_graph.data.references import as_answered
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.errors import DatasetError, ReplyError, StateFormatError
from drpo_graph.events.schema import CollectionFinished, CollectionStarted, TrialFinished
from drpo_graph.nodes import select_metrics
from drpo_graph.nodes.critique import ask_critic
from drpo_graph.oirl.collection.inputs import Placement, Question, TriedPrompt, check_prompts, check_sides
from drpo_graph.oirl.collection.laying import digest_data, find_laid_down, lay_down
from drpo_graph.oirl.collection.plan import Plan, Unit
from drpo_graph.oirl.collection.state import CollectionState, TrialTask
from drpo_graph.oirl.collection.tallies import tally_prompts
from drpo_graph.parts.checkers import Checker, run_check, to_outcome
from drpo_graph.prompts.library import Message, ResponseFormat, history_of
from drpo_graph.records import CollectionResult, Failure, Query, Rollout, digest_json
from drpo_graph.search.run_names import derive_run_id, open_run
from drpo_graph.search.session import RunContext, RunSession, session_of
from drpo_graph.search.state import STATE_FORMAT, RolloutState
from drpo_graph.settings.settings import Settings


class _Trial(NamedTuple):
    """What became of a trial."""

    outcome: float | None
    tokens: int | None = None
    failure: Failure | None = None


class Collector:
    """The nodes of one graph: they share its checker."""

    def __init__(self, checker: Checker, *, step_size: int) -> None:
        self._checker = checker
        self._step_size = step_size

    async def start(self, state: CollectionState, runtime: Runtime[RunContext]) -> CollectionState:
        """Lay down questions, prompts and the order of the trials. No model call.

        Raises:
            DatasetError: there is no question or prompt, or one is malformed.
        """
        if state.get("questions") is None:
            # Whoever started the run has laid them down: every copy of the input would repeat them.
            session = await session_of(runtime, derive_run_id())
            data = await find_laid_down(session.archive)
        else:
            questions, prompts = _read(state)
            model = runtime.context.clients["base"].settings.model
            plan = Plan.make(
                questions, prompts, num_trials=state["num_trials"], model=model, checker=self._checker.spec
            )
            data = digest_data(questions, prompts)
            session = await open_run(runtime, {"digest": digest_json([data, state["num_trials"], state["placement"]])})
            await lay_down(session.archive, questions, prompts, plan=plan, data=data)
        await announce_run(session, runtime.context)
        return {  # type: ignore[typeddict-item]  # Only changed keys.
            "format": STATE_FORMAT,
            "run_id": session.run_id,
            "fingerprints": {**runtime.context.fingerprints(), "data": data},
            "position": 0,
            "units": [],
            "questions": [],
            "prompts": [],
        }

    async def advance(self, state: CollectionState, runtime: Runtime[RunContext]) -> CollectionState:
        """Choose the trials of the next step; after the last, those that came to nothing, if they may be repeated."""
        session = await session_of(runtime, state["run_id"])
        plan = await Plan.load(session.archive)
        units = plan.take(state["position"], self._step_size)
        position = state["position"] + len(units)
        if not units and session.ledger.failures.num_asked:
            stored = await session.archive.get_all("trials")
            failed = sorted(Unit.parse(key) for key, trial in stored.items() if _may_repeat(trial, session))
            units = failed[: self._step_size]
        return {"position": position, "units": [list(unit) for unit in units]}  # type: ignore[typeddict-item]

    async def trial(self, state: TrialTask, runtime: Runtime[RunContext]) -> dict[str, object]:
        """Leave a trial's outcome in the archive; where there is none, the reason."""
        session = await session_of(runtime, state["run_id"])
        unit = Unit(*state["unit"])
        former = await session.archive.get("trials", unit.key)
        if former is not None and not _may_repeat(former, session):
            return {}
        question, prompt = await _load(session, unit)
        made = await self._try(question, prompt, unit.draw, runtime=runtime, state=state)
        await session.archive.put("trials", unit.key, _to_stored(made, session))
        session.emitter.emit(
            TrialFinished(
                run_id=session.run_id,
                query_id=question.query.id,
                prompt_name=prompt.name,
                trial=unit.draw,
                outcome=made.outcome,
                tokens=made.tokens,
                failure_kind=made.failure.kind if made.failure else None,
                detail=made.failure.detail if made.failure else "",
                was_unlabelled=former is not None,
            )
        )
        return {}

    async def conclude(self, state: CollectionState, runtime: Runtime[RunContext]) -> CollectionState:
        """Return the run's result. No model call."""
        session = await session_of(runtime, state["run_id"])
        plan = await Plan.load(session.archive)
        failures = session.ledger.retries_by_kind + count_failures(await session.archive.get_all("failures"))
        trials = await session.archive.get_all("trials")
        failures += Counter(str(one["failure"]["kind"]) for one in trials.values() if isinstance(one["failure"], dict))
        result = CollectionResult(
            thread_id=state["run_id"],
            status="done",
            model=plan.model,
            checker=plan.checker,
            num_queries=plan.num_queries,
            num_trials=plan.num_trials,
            prompts=await tally_prompts(session.archive, trials),
            usage_by_role=dict(sorted(session.ledger.usage_by_role.items())),
            cost_by_role=dict(sorted(session.ledger.cost_by_role.items())),
            failures_by_kind=dict(sorted(failures.items())),
            fingerprints=state["fingerprints"],
        )
        stored_result: dict[str, JsonValue] = result.model_dump(mode="json")
        await session.archive.put("run", "collection_result", stored_result)
        session.emitter.emit(CollectionFinished(run_id=session.run_id, result=result, output=state["output"]))
        await session.ledger.drain()
        runtime.context.close_session(session.run_id)
        return {"result": stored_result}  # type: ignore[typeddict-item]  # Only changed keys.

    async def _try(
        self, question: Question, prompt: TriedPrompt, draw: int, *, runtime: Runtime[RunContext], state: TrialTask
    ) -> _Trial:
        """Return the outcome of a prompt on a query."""
        session, settings = await session_of(runtime, state["run_id"]), runtime.context.settings
        base, query = session.models.base, question.query
        placement = cast(Placement, state["placement"])
        # At temperature 0 a request is its own repetition; a seed would only tell equal requests apart.
        is_drawn = base.channel.client.settings.temperature != 0
        place = f"{settings.seed}/trial/{query.id}/{prompt.name}/{draw}"
        sample = await base.respond(
            render_trial(base.response_format, prompt.prompt, query, placement=placement, settings=settings),
            # A prompt that leaves the model without words has led to no answer.
            accepts_empty=True,
            seed=random.Random(place).randrange(2**31) if is_drawn else None,
        )
        if sample.value is None:
            return _Trial(None, failure=sample.failure or Failure(kind="empty", detail="no reply"))
        tokens = await _count_tokens(session, sample.key)
        try:
            return _Trial(await self._judge(question, prompt, sample.value, runtime=runtime, session=session), tokens)
        except ReplyError as error:
            return _Trial(None, tokens, Failure(kind=error.kind, detail=str(error)))

    async def _judge(
        self,
        question: Question,
        prompt: TriedPrompt,
        response: str,
        *,
        runtime: Runtime[RunContext],
        session: RunSession,
    ) -> float:
        """Return a response's outcome.

        Raises:
            ReplyError: it cannot be judged.
        """
        query = question.query
        if self._checker.function is not None:
            timeout_s = runtime.context.settings.timeout_s
            return await run_check(self._checker, query, response, reference=question.reference, timeout_s=timeout_s)
        await select_metrics(cast(RolloutState, {"run_id": session.run_id, "query_id": query.id}), runtime)
        unscored = Rollout(candidate_id=prompt.name, query_id=query.id, response=response, critique=None, reward=None)
        scored = await ask_critic(unscored, response, runtime.context, session=session)
        if scored.failure is not None:
            raise ReplyError(scored.failure.detail, kind=scored.failure.kind)
        outcome = to_outcome(scored.reward) if scored.reward is not None else -1.0
        if not 0 <= outcome <= 1:
            raise ReplyError(f"the critic gave {scored.reward!r}, expected a reward from 1 to 5")
        return outcome


async def announce_run(session: RunSession, context: RunContext, *, is_resumed: bool = False) -> None:
    """Tell that a run begins, or goes on, and with what."""
    plan = await Plan.load(session.archive)
    used = {"base"} | ({"metrics", "critic"} if plan.checker == "critic" else set())
    session.emitter.emit(
        CollectionStarted(
            run_id=session.run_id,
            is_resumed=is_resumed,
            num_queries=plan.num_queries,
            num_trials=plan.num_trials,
            num_planned=plan.num_planned,
            checker=plan.checker,
            prompts=await tally_prompts(session.archive, await session.archive.get_all("trials")),
            models={role: client.settings.model for role, client in context.clients.items() if role in used},
            former_s=session.ledger.budget.former_s,
        )
    )


async def announce_resume(session: RunSession, context: RunContext, values: Mapping[str, Any]) -> None:
    """Tell that a run goes on; all that it tells stands in its archive."""
    await announce_run(session, context, is_resumed=True)


def render_trial(
    form: ResponseFormat, prompt: str, query: Query, *, placement: Placement, settings: Settings
) -> list[Message]:
    """Return the request that tries a prompt on a query."""
    history = history_of(query)
    if placement == "system":
        return form.render(system_prompt=prompt, query=query.text, history=history)
    asked = f"{query.text}\n\n{prompt}"
    if form.flat is None:
        return [*history, {"role": "user", "content": asked}]
    # A flat text always has instructions.
    return form.render(system_prompt=settings.initial_prompt, query=asked, history=history)


def _read(state: CollectionState) -> tuple[tuple[Question, ...], tuple[TriedPrompt, ...]]:
    try:
        given = [Question.model_validate(one) for one in state["questions"]]
        prompts = check_prompts([TriedPrompt.model_validate(one) for one in state["prompts"]])
    except ValidationError as error:
        raise DatasetError(f"Expected questions with 'query', prompts with 'name' and 'prompt': {error}") from error
    if not given:
        raise DatasetError("There is no query: expected at least one.")
    # Their rows are checked as everywhere.
    as_answered(AnsweredQuery(one.query, one.reference, one.split) for one in given)
    check_sides(given, prompts)
    return tuple(given), prompts


async def _load(session: RunSession, unit: Unit) -> tuple[Question, TriedPrompt]:
    question = await session.archive.record("questions", str(unit.query), Question)
    prompt = await session.archive.record("prompts", str(unit.prompt), TriedPrompt)
    if question is None or prompt is None:
        raise StateFormatError(f"Run {session.run_id!r}: its store lacks the query or prompt of trial {unit.key}.")
    return question, prompt


def _may_repeat(stored: object, session: RunSession) -> bool:
    """Return whether a trial came to nothing, and the user has let such be made again since."""
    trial = cast(dict[str, JsonValue], stored)
    return trial["outcome"] is None and cast(int, trial["num_asked"]) < session.ledger.failures.num_asked


def _to_stored(made: _Trial, session: RunSession) -> dict[str, JsonValue]:
    return {
        "outcome": made.outcome,
        "tokens": made.tokens,
        "failure": made.failure.model_dump(mode="json") if made.failure else None,
        "num_asked": session.ledger.failures.num_asked,
    }


async def _count_tokens(session: RunSession, key: str | None) -> int | None:
    """Return what a finished call used, in and out, or ``None`` where its server does not tell."""
    stored = await session.archive.record("calls", key, CallRecord) if key is not None else None
    return None if stored is None else stored.usage.prompt_tokens + stored.usage.completion_tokens or None
