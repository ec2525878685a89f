"""Start and resume collections, on the same frame as the search's runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from drpo_graph.data.references import GivenAnswered, as_answered, load_bundled_problems
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.errors import BudgetSpentError, FingerprintMismatchError, SettingsError, UsageError
from drpo_graph.events.schema import CollectionFinished
from drpo_graph.models.given_models import GivenModel
from drpo_graph.oirl.collection.files import check_output, write_collection
from drpo_graph.oirl.collection.graph import CollectionGraph, build_collection_graph, find_optional_roles
from drpo_graph.oirl.collection.inputs import (
    CollectionRunInput,
    GivenPrompts,
    TrialOptions,
    TriedPrompt,
    as_prompts,
    check_prompts,
    check_sides,
    load_tried_prompts,
    make_questions,
)
from drpo_graph.oirl.collection.laying import digest_data, lay_down
from drpo_graph.oirl.collection.nodes import announce_resume
from drpo_graph.oirl.collection.plan import Plan
from drpo_graph.oirl.collection.tallies import collect_rows
from drpo_graph.oirl.tables import save_demonstrations
from drpo_graph.parts.checkers import Checker, CheckFunction, as_checker, load_checker, names_own_code
from drpo_graph.records import CollectionResult, Role
from drpo_graph.runs.beginnings import check_is_new, make_record, take_up
from drpo_graph.runs.work import RunOptions, RunWork
from drpo_graph.safety.api_keys import KeyFinder
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.session import RunContext, RunSession
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.damage import valid
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.protocols import Checkpoint
from drpo_graph.storage.run_list import RunRecord


async def collect_demonstrations(
    queries: GivenAnswered | None = None,
    prompts: GivenPrompts | None = None,
    *,
    settings: Settings,
    checker: str | CheckFunction | Checker = "numeric",
    trials: TrialOptions | None = None,
    thread_id: str | None = None,
    options: RunOptions | None = None,
    models: Mapping[Role, GivenModel] | None = None,
) -> CollectionResult:
    """Try every prompt on every query and keep the outcomes as demonstrations (Prompt-OIRL, section 3.1).

    Args:
        queries: Queries with their references: texts, records, rows, a data frame or a file's path; the bundled word
            problems when absent.
        prompts: What is tried, in any of these forms; the bundled reasoning prompts when absent. One whose split is
            ``test`` is held out: only test queries are asked under it.
        settings: Names the model that answers, as role ``base``, limits and budget; its ``seed`` draws the sides.
        checker: Judges the replies: a name, as :func:`~drpo_graph.parts.checkers.load_checker` takes it, or a function.
        trials: How often and how they are tried, what is held out, and where the demonstrations go.
        thread_id: Names the run; a new name when absent.
        options: Where it is kept and who is told.
        models: Chat model instances by role, in place of the settings' model strings.

    Raises:
        UsageError: an argument cannot be used, a reference is missing, or the run exists already.
        ModelCallError: a model endpoint cannot be used; the run can be resumed.
        RunInterruptedError: it was asked to stop, or its budget is spent; it can be resumed.
        RewardError: the checker raised what it had not announced; mended, the run can be resumed.
    """
    options = options or RunOptions()
    thread_id = check_thread_id(thread_id or new_thread_id())
    checker = as_checker(checker)
    given = make_input(
        load_bundled_problems() if queries is None else as_answered(queries),
        load_tried_prompts() if prompts is None else as_prompts(prompts),
        settings=settings,
        checker=checker,
        trials=trials or TrialOptions(),
    )
    context = assemble(settings, Parts(models=models), optional_roles=find_optional_roles(checker))
    async with find_storage(options.checkpoint).open_run(thread_id) as checkpoint:
        await check_is_new(checkpoint, thread_id, options)
        record = make_record(thread_id, settings, options, kind="oirl")
        return await _Collection(record, context, checkpoint, options, given, checker=checker, is_new=True).carry_out()


def make_input(
    queries: Sequence[AnsweredQuery],
    prompts: Sequence[TriedPrompt],
    *,
    settings: Settings,
    checker: Checker,
    trials: TrialOptions,
) -> CollectionRunInput:
    """Return what a run is given, checked: nothing of it comes up only when calls are paid for.

    Raises:
        UsageError: an argument cannot be used, or a reference is missing.
    """
    num_trials, test_share, output = trials.num_trials, trials.test_share, trials.output
    if words := KeyFinder().find(checker.spec, is_name=True):
        raise UsageError(f"The checker's name holds {words}, and it is stored. Give another one.")
    if num_trials < 1:
        raise UsageError(f"Expected at least one trial of each pair, got {num_trials}.")
    if not 0 <= test_share < 1:
        raise UsageError(f"Expected a test share from 0 up to, and without, 1, got {test_share:g}.")
    if num_trials > 1 and settings.base.temperature == 0:
        raise UsageError(
            f"{num_trials} trials of each pair: at temperature 0 they would be the same. Give a temperature above 0."
        )
    if output is not None:
        check_output(output)
    questions = make_questions(queries, checker=checker, test_share=test_share, seed=settings.seed)
    chosen = check_prompts(prompts)
    check_sides(questions, chosen)
    return CollectionRunInput(
        questions=questions,
        prompts=chosen,
        num_trials=num_trials,
        placement=trials.placement,
        checker=checker.spec,
        output=str(output.absolute()) if output is not None else "",
    )


async def resume_collection(
    thread_id: str,
    *,
    checker: str | CheckFunction | Checker | None = None,
    options: RunOptions | None = None,
    models: Mapping[Role, GivenModel] | None = None,
    changes: Mapping[str, object] | None = None,
    accepts_changes: bool = False,
    retries_failed: bool = False,
) -> CollectionResult:
    """Continue a collection; a finished one returns its result again.

    Args:
        thread_id: The run.
        checker: The checker that it was started with; needed where that is a function of the user's.
        options: Where it is kept and who is told.
        models: The same instances that it was started with.
        changes: Settings to change by name, of those that only say where and how fast.
        accepts_changes: Whether to go on although settings or the checker differ from the start.
        retries_failed: Whether trials that came to nothing are made again.

    Raises:
        RunNotFoundError: there is no such run.
        UsageError: it is of another kind, or its own code is not named again.
        FingerprintMismatchError: settings or the checker differ from the start.
    """
    options = options or RunOptions()
    thread_id = check_thread_id(thread_id)
    async with find_storage(options.checkpoint).open_run(thread_id, must_exist=True) as checkpoint:
        run = await take_up(checkpoint, thread_id, kind="oirl", options=options, changes=changes)
        with valid(thread_id, "what it was given"):
            given = CollectionRunInput.model_validate(run.given)
        chosen = _choose_checker(given.checker, checker, accepts_changes=accepts_changes)
        given = given.model_copy(update={"checker": chosen.spec})
        context = assemble(
            run.settings,
            Parts(models=models),
            accepts_changes=accepts_changes,
            optional_roles=find_optional_roles(chosen),
        )
        work = _Collection(
            run.record, context, checkpoint, run.options, given, checker=chosen, retries_failed=retries_failed
        )
        return await work.carry_out()


class _Collection(RunWork[CollectionResult]):
    """One process's part of a collection."""

    _given: CollectionRunInput
    _result_type = CollectionResult

    def __init__(
        self,
        record: RunRecord,
        context: RunContext,
        checkpoint: Checkpoint,
        options: RunOptions,
        given: CollectionRunInput,
        *,
        checker: Checker,
        is_new: bool = False,
        retries_failed: bool = False,
    ) -> None:
        self._checker, self._is_new = checker, is_new
        self._finished = partial(CollectionFinished, output=given.output)
        super().__init__(record, context, checkpoint, options, given, retries_failed=retries_failed)

    async def carry_out(self) -> CollectionResult:
        """Run to the end, and write the demonstrations where they are wanted."""
        result = await super().carry_out()
        if self._given.output:
            collected = await collect_rows(self._archive)
            save_demonstrations(Path(self._given.output), collected.demonstrations)
        return result

    def _make_graph(self) -> CollectionGraph:
        return build_collection_graph(self._record.settings, checker=self._checker, checkpointer=self._checkpoint.saver)

    def _make_input(self) -> Any:
        laid_down = set() if self._given.questions else {"questions"}
        return self._given.model_dump(mode="json", exclude={"checker", *laid_down})

    async def _store_given(self) -> None:
        if self._is_new:
            questions, prompts = self._given.questions, self._given.prompts
            model = self._context.clients["base"].settings.model
            plan = Plan.make(
                questions, prompts, num_trials=self._given.num_trials, model=model, checker=self._given.checker
            )
            await lay_down(self._archive, questions, prompts, plan=plan, data=digest_data(questions, prompts))
            self._given = self._given.model_copy(update={"questions": ()})
        await super()._store_given()

    async def _announce_resume(self, session: RunSession, values: Mapping[str, Any]) -> None:
        await announce_resume(session, self._context, values)

    async def _export(self, folder: Path, result: CollectionResult) -> None:
        collected = await collect_rows(self._archive)
        write_collection(folder, result, collected, has_own_place=bool(self._given.output))

    async def _tell(self, error: BudgetSpentError, values: Mapping[str, Any], *, folder: Path | None) -> None:
        collected = await collect_rows(self._archive)
        num_made = len(collected.demonstrations) + len(collected.unlabelled)
        error.add(f"{num_made} of {collected.num_planned} trials are made.")


def _choose_checker(stored: str, given: str | CheckFunction | Checker | None, *, accepts_changes: bool) -> Checker:
    """Return the checker that a run goes on with.

    A checkpoint may come from somebody else, and the name of a function says which code is imported: it is not taken
    from there.

    Raises:
        SettingsError: the caller names no code, and the run needs some.
        FingerprintMismatchError: the caller names another one than the run's.
    """
    if given is None:
        if names_own_code(stored):
            raise SettingsError(
                f"This run's checker is {stored}. A checkpoint's word is not enough to load code: name it again with "
                f"--checker {stored}."
            )
        return load_checker(stored)
    chosen = as_checker(given)
    if chosen.spec != stored and not accepts_changes:
        raise FingerprintMismatchError(
            f"This run's checker is {stored}, not {chosen.spec}. Resume it with the same one, start a new run, or "
            "accept the change with --force.",
            ("checker",),
        )
    return chosen
