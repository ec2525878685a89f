"""``drpo oirl from-run``: demonstrations from the critiques of searches."""

import asyncio
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.completion import complete_thread
from drpo_graph.cli.option_groups import takes_options
from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.display.collection import tell_training
from drpo_graph.display.streams import quiet, write_lines
from drpo_graph.safety.terminal import inert
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import find_storage

_MAX_LINE = 2000


@takes_options
def from_run_command(
    *,
    thread_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="THREAD...", help="Runs of drpo optimize; `drpo runs` lists them.", autocompletion=complete_thread
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Demonstrations, .jsonl or .parquet.")],
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
) -> None:
    """Write the critiques of searches as demonstrations: query, candidate's prompt, and its reward from 0 to 1.

    The runs need not be finished. Responses that nobody could score are left out and counted.
    """
    names = [check_thread_id(one) for one in thread_ids]
    storage = find_storage(checkpoint)
    storage.require()
    # Loads LangGraph.
    from drpo_graph.oirl.collection.files import check_output
    from drpo_graph.oirl.search_runs import read_run_demonstrations
    from drpo_graph.oirl.tables import save_demonstrations

    check_output(output)
    found = asyncio.run(read_run_demonstrations(storage, names))
    num_rows = save_demonstrations(output, chain.from_iterable(one.rows for one in found))
    lines = [
        f"{one.thread_id}: {len(one.rows)} demonstrations; left out: {one.num_unscored} unscored, "
        f"{one.num_repeated} repeated"
        for one in found
    ]
    lines += [f"{num_rows} demonstrations in {output}", f"next: {tell_training(output)}"]
    for line in lines:
        write_lines(quiet(sys.stdout), inert(line, max_chars=_MAX_LINE))
