"""Start and resume runs: everything around the graph that a command line or a service needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from drpo_graph.data.datasets import load_bundled_queries, without_sweeps
from drpo_graph.data.given import GivenQueries, as_queries
from drpo_graph.data.order import check_distinct
from drpo_graph.errors import BudgetSpentError, DatasetError, FingerprintMismatchError
from drpo_graph.events.schema import RunFinished
from drpo_graph.graph import SearchGraph, build_graph
from drpo_graph.parts.rewrite_guards import check_fillable
from drpo_graph.parts.screens import check_screen
from drpo_graph.records import Query, RunResult, WarmStart
from drpo_graph.runs.beginnings import check_is_new, make_record, take_up
from drpo_graph.runs.files import export_result
from drpo_graph.runs.partial_results import tell_standing
from drpo_graph.runs.warm_start import start_from
from drpo_graph.runs.work import RunOptions as RunOptions
from drpo_graph.runs.work import RunWork
from drpo_graph.search.announce import announce_resume
from drpo_graph.search.assembly import Parts, assemble
from drpo_graph.search.levels import draw_queries
from drpo_graph.search.session import RunSession
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.damage import valid
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage
from drpo_graph.storage.run_list import RunInput


async def optimize(
    queries: GivenQueries | None = None,
    *,
    settings: Settings,
    validation: GivenQueries = (),
    warm_start: WarmStart | None = None,
    thread_id: str | None = None,
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> RunResult:
    """Optimise a system prompt and return what was found.

    Args:
        queries: Training queries: texts, records, rows, a data frame or a file's path; the bundled ones when absent.
        settings: What to do.
        validation: Held-out queries; given any, the final choice is made on them.
        warm_start: What another run found, to begin with.
        thread_id: Names the run; a new name when absent.
        options: Where it is kept and who is told.
        parts: Replacements for models and components.

    Raises:
        UsageError: a setting, path or dataset is wrong, or the run exists already.
        ModelCallError: a model endpoint cannot be used; the run can be resumed.
        RunInterruptedError: it was asked to stop, its budget is spent (``BudgetSpentError``), or it waits for a
            decision (``ReviewNeededError``); it can be resumed.
        CheckpointError: the checkpoint cannot be opened or written.
    """
    options, parts = options or RunOptions(), parts or Parts()
    thread_id = check_thread_id(thread_id or new_thread_id())
    settings = start_from(settings, warm_start) if warm_start else settings
    training, held_out = _read_given(queries, validation, settings)
    given = RunInput(queries=_as_input(training), validation_queries=_as_input(held_out), warm_start=warm_start)
    filled = [*training, *held_out] if parts.responder is None else []
    check_fillable(settings, settings.initial_prompt, filled)
    # Models and templates are checked before anything is created: a typo leaves nothing behind.
    context = assemble(settings, parts)
    check_screen(settings, context.components.screen)
    async with find_storage(options.checkpoint).open_run(thread_id) as checkpoint:
        await check_is_new(checkpoint, thread_id, options)
        record = make_record(thread_id, settings, options, warm_start=warm_start.source if warm_start else None)
        return await _Search(record, context, checkpoint, options, given).carry_out()


async def resume(
    thread_id: str,
    *,
    options: RunOptions | None = None,
    parts: Parts | None = None,
    changes: Mapping[str, object] | None = None,
    queries: GivenQueries | None = None,
    accepts_changes: bool = False,
    retries_failed: bool = False,
) -> RunResult:
    """Continue a run, and return what was found; a finished run returns its result again.

    Args:
        thread_id: The run.
        options: Where it is kept and who is told.
        parts: The same replacements that it was started with.
        changes: Settings to change by name. What only says where and how fast may change; the rest is refused.
        queries: The training queries again, to have them checked; those it was started with when absent.
        accepts_changes: Whether to go on although settings, prompts or data differ from the start.
        retries_failed: Whether to ask again for what had no usable reply: the unscored answers of the level, or the
            validation, in work. What they cost stays counted.

    Raises:
        RunNotFoundError: there is no such run.
        FingerprintMismatchError: settings, prompts or data differ from the start.
        RunLockedError: another process works on it.
    """
    options, parts = options or RunOptions(), parts or Parts()
    thread_id = check_thread_id(thread_id)
    async with find_storage(options.checkpoint).open_run(thread_id, must_exist=True) as checkpoint:
        run = await take_up(checkpoint, thread_id, kind="search", options=options, changes=changes)
        with valid(thread_id, "what it was given"):
            given = RunInput.model_validate(run.given)
        if queries is not None and not accepts_changes and not _is_same(given, queries, run.record.settings):
            raise FingerprintMismatchError(
                "This run was started with other data. Resume it without queries, start a new run, or accept the "
                "change with --force.",
                ("data",),
            )
        context = assemble(run.settings, parts, accepts_changes=accepts_changes)
        check_screen(run.settings, context.components.screen)
        work = _Search(run.record, context, checkpoint, run.options, given, retries_failed=retries_failed)
        return await work.carry_out()


class _Search(RunWork[RunResult]):
    """The search."""

    _given: RunInput
    _result_type = RunResult
    _finished = RunFinished

    def _make_graph(self) -> SearchGraph:
        return build_graph(self._record.settings, checkpointer=self._checkpoint.saver)

    def _make_input(self) -> Any:
        warm_start = self._given.warm_start
        rejected = [one.model_dump(mode="json") for one in warm_start.rejected] if warm_start else []
        return {
            "initial_prompt": self._record.settings.initial_prompt,
            "queries": self._given.queries,
            "validation_queries": self._given.validation_queries,
            **({"rejected_rewrites": rejected} if rejected else {}),
        }

    async def _announce_resume(self, session: RunSession, values: Mapping[str, Any]) -> None:
        await announce_resume(session, self._context, values)

    async def _export(self, folder: Path, result: RunResult) -> None:
        await export_result(self._archive, folder, result)

    async def _tell(self, error: BudgetSpentError, values: Mapping[str, Any], *, folder: Path | None) -> None:
        await tell_standing(error, values, self._archive, settings=self._context.settings, folder=folder)


def _read_given(
    queries: GivenQueries | None, validation: GivenQueries, settings: Settings
) -> tuple[Sequence[Query], Sequence[Query]]:
    """Return what a run keeps of the training queries, and the held-out ones.

    Raises:
        DatasetError: queries cannot be used, there is none to train on, or the two share an id.
    """
    with without_sweeps():
        training = load_bundled_queries() if queries is None else as_queries(queries)
        if not training:
            raise DatasetError("The dataset is empty: expected at least one training query.")
        held_out = as_queries(validation, label="validation")
        # Of the whole dataset: the run itself will only see what is drawn.
        check_distinct(training, held_out)
        return draw_queries(training, settings), held_out


def _is_same(given: RunInput, queries: GivenQueries, settings: Settings) -> bool:
    """Return whether these are the queries that a run was given: whole, or drawn as they were when it began."""
    kept, training = as_queries(cast(GivenQueries, given.queries)), as_queries(queries)
    return kept in (training, draw_queries(training, settings))


def _as_input(queries: Sequence[Query]) -> list[JsonValue]:
    return [query.model_dump(mode="json") for query in queries]
