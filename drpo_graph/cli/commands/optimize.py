"""``drpo optimize`` and ``drpo resume``."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import (
    check_budget,
    check_held_out,
    read_changes,
    read_datasets,
    read_settings,
    read_warm_start,
    tell_source,
)
from drpo_graph.cli.option_groups import FLAG, Only, Without, option, takes_options
from drpo_graph.cli.pages.estimate import print_estimate
from drpo_graph.cli.places import find_place_of
from drpo_graph.cli.published_options import Published, fill_from_file, note_unused, shape_serving
from drpo_graph.data.datasets import without_sweeps
from drpo_graph.errors import DatasetError
from drpo_graph.parts.rewrite_guards import check_fillable
from drpo_graph.search.levels import draw_queries
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage


@takes_options
def optimize_command(
    *,
    queries: flags.QueriesArgument = None,
    models: flags.Models,
    serving: flags.Serving,
    search: flags.Search,
    sources: flags.Sources,
    thread_id: flags.ThreadIdOption = None,
    output: flags.Output,
    pace: flags.Pace,
    budget: flags.Budget,
    published: Published,
) -> None:
    """Optimise a system prompt.

    Without datasets it trains on the bundled queries. The run is stored as it goes: whatever ends it, `drpo resume`
    continues it, and no finished model call is paid for twice.

    The flags of the published code are accepted: --base-model-name, --metrics-model-name, --eval-model-name,
    --optimize-model-name, --initial-system-prompt, --num-training-examples, --metrics-cache-path.
    """
    storage = find_storage(output.checkpoint)
    published, output = fill_from_file(sources, published), fill_from_file(sources, output)
    settings = read_settings(sources, models, search, pace, budget, published)
    begun = read_warm_start(search.warm_start, storage)
    check_budget(settings, budget.find_priced())
    with without_sweeps():
        if published.data_dir and not Path(published.data_dir).exists():
            is_filed = published.data_dir == sources.run_values.get("data_dir")
            name = tell_source(sources, "data_dir") if is_filed else "data_dir"
            raise DatasetError(f"{name}: there is no {published.data_dir}. Give a folder, or a file, of queries.")
        training = read_datasets([*(queries or []), *([published.data_dir] if published.data_dir else [])])
        held_out = read_datasets(search.validation) if search.validation else ()
        check_held_out(training, held_out)
        # Of a large dataset the rest is not needed any more.
        training = draw_queries(training, settings)
    check_fillable(settings, settings.initial_prompt, [*training, *held_out])
    if published.base_model_family:
        typer.echo("note: base_model_family: not needed, as the server knows its model's chat template.", err=True)
    serving, note = shape_serving(serving, published, settings)
    if note:
        typer.echo(f"note: {note}", err=True)
    name = check_thread_id(new_thread_id() if thread_id is None else thread_id)
    if budget.dry_run:
        expected = settings.model_copy(update={"initial_prompt": begun.system_prompt}) if begun else settings
        print_estimate(expected, training, held_out, display=output.display)
        return
    # Loads LangGraph: wrong usage is told before that.
    from drpo_graph.cli import execution
    from drpo_graph.runs.runner import optimize

    if published.disable_tqdm and output.display == "rich":
        output = replace(output, display="plain")
    frame = execution.build_frame(storage, output, serving=serving)
    parts = execution.make_parts(settings)
    begin = partial(
        optimize, training, settings=settings, validation=held_out, warm_start=begun, thread_id=name, parts=parts
    )
    execution.start(name, begin, settings=settings, frame=frame, parts=parts)


@takes_options
def resume_command(
    *,
    thread_id: flags.RunArgument,
    queries: flags.QueriesArgument = None,
    sources: flags.Sources,
    pace: Annotated[flags.Pace, Only("max_outage_s")],
    budget: Annotated[flags.Budget, Without("dry_run")],
    search: Annotated[flags.Search, Only("reward")],
    force: bool = option(False, FLAG, help="Go on although settings, prompts or data changed.", panel=flags.RUN),
    retry_failed: bool = option(False, FLAG, help="Ask again for what had no usable reply.", panel=flags.RUN),
    checker: str | None = option(
        None, "SPEC", help="Of a run of `drpo oirl collect` whose checker is a function: its name again."
    ),
    serving: flags.Serving,
    output: flags.Output,
) -> None:
    """Continue a run from where it was: after Ctrl-C, a crash, a lost connection.

    Settings and queries are those it was started with. What only says where and how fast, such as
    --set critic.base_url=URL or --set max_concurrency=8, and the budget may change; anything else needs --force.
    """
    storage = find_place_of(thread_id, output.checkpoint)
    output = fill_from_file(sources, output)
    note_unused(sources, output)
    changes = read_changes(sources, pace, budget, search)
    training = read_datasets(queries) if queries else None
    from drpo_graph.cli import execution  # Loads LangGraph: wrong usage is told before that.

    run = execution.ResumedRun(
        changes=changes,
        training=training,
        accepts_changes=force,
        priced=budget.find_priced(),
        retries_failed=retry_failed,
        checker=checker,
    )
    execution.go_on(run, thread_id, frame=execution.build_frame(storage, output, serving=serving))
