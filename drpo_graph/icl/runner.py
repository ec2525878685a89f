"""Start and resume runs over ICL examples, on the same frame as the search's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from drpo_graph.errors import FingerprintMismatchError, UsageError
from drpo_graph.events.schema import ICLFinished
from drpo_graph.icl.files import write_examples
from drpo_graph.icl.graph import OPTIONAL_ROLES, ICLGraph, build_icl_graph
from drpo_graph.icl.nodes import announce_resume, lay_down
from drpo_graph.icl.state import DEFAULT_NUM_ITERS, DEFAULT_NUM_SAMPLES
from drpo_graph.models.given_models import GivenModel
from drpo_graph.records import ICLExample, ICLResult, Record, Role
from drpo_graph.retrieval.examples import GivenExamples, as_examples, bundled_icl_examples
from drpo_graph.runs.beginnings import check_is_new, make_record, take_up
from drpo_graph.runs.work import RunOptions, RunWork
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.session import RunSession
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.damage import valid
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage


class ICLRunInput(Record):
    """What a run was given; kept with it, so that resuming needs nothing else."""

    examples: tuple[ICLExample, ...] = ()
    """Not stored here, but by number; runs of earlier versions have them here as well."""
    num_iters: int = Field(ge=1)
    num_samples: int = Field(ge=1)


async def optimize_icl(
    examples: GivenExamples | None = None,
    *,
    settings: Settings,
    num_iters: int = DEFAULT_NUM_ITERS,
    num_samples: int = DEFAULT_NUM_SAMPLES,
    thread_id: str | None = None,
    options: RunOptions | None = None,
    models: Mapping[Role, GivenModel] | None = None,
) -> ICLResult:
    """Rewrite the responses of ICL examples from their critiques; return the best-scored ones.

    Args:
        examples: Examples, rows with a query and a response, a data frame or a file's path; the bundled ones when
            absent.
        settings: Names the models, limits and budget; what concerns the search alone is not used.
        num_iters: Rounds of rewriting per example, at most; a perfect score ends them sooner.
        num_samples: Rewrites per round.
        thread_id: Names the run; a new name when absent.
        options: Where it is kept and who is told.
        models: Chat model instances by role, in place of the settings' model strings.

    Raises:
        UsageError: a number, setting or example is wrong, or the run exists already.
        ModelCallError: a model endpoint cannot be used; the run can be resumed.
        RunInterruptedError: it was asked to stop, or its budget is spent; it can be resumed.
    """
    options = options or RunOptions()
    thread_id = check_thread_id(thread_id or new_thread_id())
    if num_iters < 1 or num_samples < 1:
        raise UsageError(f"Expected at least one iteration and one sample, got {num_iters} and {num_samples}.")
    chosen = bundled_icl_examples() if examples is None else as_examples(examples)
    given = ICLRunInput(examples=chosen, num_iters=num_iters, num_samples=num_samples)
    context = assemble(settings, Parts(models=models), optional_roles=OPTIONAL_ROLES)
    async with find_storage(options.checkpoint).open_run(thread_id) as checkpoint:
        await check_is_new(checkpoint, thread_id, options)
        record = make_record(thread_id, settings, options, kind="icl")
        return await _NewICLWork(record, context, checkpoint, options, given).carry_out()


async def resume_icl(
    thread_id: str,
    *,
    options: RunOptions | None = None,
    models: Mapping[Role, GivenModel] | None = None,
    changes: Mapping[str, object] | None = None,
    accepts_changes: bool = False,
    retries_failed: bool = False,
) -> ICLResult:
    """Continue a run over ICL examples; a finished one returns its result again.

    Args:
        thread_id: The run.
        options: Where it is kept and who is told.
        models: The same instances that it was started with.
        changes: Settings to change by name, of those that only say where and how fast.
        accepts_changes: Whether to go on although settings or prompts differ from the start.
        retries_failed: Whether examples whose given response could not be scored are begun again.

    Raises:
        RunNotFoundError: there is no such run.
        UsageError: the run is a search, or its reward functions are not named again.
        FingerprintMismatchError: settings or prompts differ from the start.
    """
    options = options or RunOptions()
    thread_id = check_thread_id(thread_id)
    async with find_storage(options.checkpoint).open_run(thread_id, must_exist=True) as checkpoint:
        run = await take_up(checkpoint, thread_id, kind="icl", options=options, changes=changes)
        with valid(thread_id, "what it was given"):
            given = ICLRunInput.model_validate(run.given)
        context = assemble(
            run.settings, Parts(models=models), accepts_changes=accepts_changes, optional_roles=OPTIONAL_ROLES
        )
        work = _ICLWork(run.record, context, checkpoint, run.options, given, retries_failed=retries_failed)
        return await work.carry_out()


class _ICLWork(RunWork[ICLResult]):
    """One process's part of a run over ICL examples."""

    _given: ICLRunInput
    _result_type = ICLResult
    _finished = ICLFinished

    def _make_graph(self) -> ICLGraph:
        return build_icl_graph(self._record.settings, checkpointer=self._checkpoint.saver)

    def _make_input(self) -> Any:
        return self._given.model_dump(mode="json", exclude=None if self._given.examples else {"examples"})

    def _check_state(self, values: Mapping[str, Any]) -> None:
        super()._check_state(values)
        own = self._context.prompts.response_fingerprint
        if values["fingerprints"].get("icl") != own and not self._context.accepts_changes:
            raise FingerprintMismatchError(
                "This run was started with another template for rewriting responses. Start a new run, or accept the "
                "change with --force.",
                ("prompts",),
            )

    async def _announce_resume(self, session: RunSession, values: Mapping[str, Any]) -> None:
        await announce_resume(session, self._context, values)

    async def _export(self, folder: Path, result: ICLResult) -> None:
        write_examples(folder, result)


class _NewICLWork(_ICLWork):
    """The part that begins a run."""

    async def _store_given(self) -> None:
        await lay_down(self._archive, self._given.examples)
        self._given = self._given.model_copy(update={"examples": ()})
        await super()._store_given()
