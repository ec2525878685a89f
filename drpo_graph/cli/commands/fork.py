"""``drpo fork``: branch a run with other settings."""

import asyncio
from functools import partial
from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import check_budget, read_changes
from drpo_graph.cli.option_groups import Without, takes_options
from drpo_graph.cli.places import find_place_of
from drpo_graph.cli.published_options import note_unused
from drpo_graph.storage.names import check_thread_id, new_thread_id

_Level = Annotated[
    int,
    typer.Option("--level", metavar="N", min=0, help="After which level to branch; 0: the initial prompt is scored."),
]
_Search = Annotated[
    flags.Search,
    # What is decided when a run starts, and cannot change.
    Without(
        *("initial_prompt", "warm_start", "num_queries", "compat", "validation", "placeholders", "approve"),
        *("ret_icl", "k", "icl_examples", "embeddings", "embeddings_base_url"),
    ),
]


@takes_options
def fork_command(
    *,
    parent_id: flags.RunArgument,
    level: _Level,
    new_id: flags.ThreadIdOption = None,
    models: flags.Models,
    serving: flags.Serving,
    search: _Search,
    sources: flags.Sources,
    pace: flags.Pace,
    budget: Annotated[flags.Budget, Without("dry_run")],
    output: flags.Output,
) -> None:
    """Branch a run with other settings from the state that it had after a level.

    The former run stays as it is. Its finished calls cost the fork nothing: with settings unchanged no call is made.
    Settings that are not given are the former run's; data and initial prompt cannot change.
    """
    storage = find_place_of(parent_id, output.checkpoint)
    # A file that the former run was given names that run's folder, which stays as it is.
    note_unused(sources)
    changes = read_changes(sources, models, search, pace, budget)
    name = check_thread_id(new_thread_id() if new_id is None else new_id)
    # Loads LangGraph: wrong usage is told before that.
    from drpo_graph.cli import execution
    from drpo_graph.runs.forks import change_settings, fork
    from drpo_graph.runs.reading import find_run

    frame = execution.build_frame(storage, output, serving=serving)
    settings = change_settings(asyncio.run(find_run(storage, parent_id)).settings, changes)
    check_budget(settings, budget.find_priced())
    if new_id is not None:
        execution.check_is_new(storage, name)
    parts = execution.make_parts(settings)
    begin = partial(fork, parent_id, level=level, new_id=name, changes=changes, parts=parts)
    execution.start(name, begin, settings=settings, frame=frame, parts=parts)
