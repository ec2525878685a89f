"""``drpo fork``: branch a run with other settings."""

from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_changes
from drpo_graph.cli.option_groups import Without, takes_options
from drpo_graph.cli.places import find_place_of
from drpo_graph.storage.names import check_thread_id

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
    thread_id: flags.RunArgument,
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
    storage = find_place_of(thread_id, output.checkpoint)
    changes = read_changes(sources, models, search, pace, budget)
    if new_id is not None:
        check_thread_id(new_id)
    from drpo_graph.cli import execution  # Loads LangGraph: wrong usage is told before that.

    run = execution.Fork(parent_id=thread_id, level=level, changes=changes, priced=budget.find_priced())
    execution.branch(run, new_id, frame=execution.build_frame(storage, output, serving=serving))
