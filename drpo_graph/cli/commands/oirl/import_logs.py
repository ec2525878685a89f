"""``drpo oirl import``: published logs as demonstrations."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from drpo_graph.cli.demonstrations import check_is_no_input
from drpo_graph.cli.option_groups import option, takes_options
from drpo_graph.display.streams import write_lines
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.terminal import inert

_MAX_LINE = 2000


@takes_options
def import_logs_command(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Labels with their queries, or a copy of the repository.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Demonstrations, .jsonl or .parquet.")],
    queries: Path | None = option(
        None, "FILE|FOLDER", help="The queries in the logs' order: a dataset file, or a folder of fold*/train.csv."
    ),
    prompts: Path | None = option(None, "FILE", help="JSON list of prompts, where the logs lack their texts."),
    task: str | None = option(None, "NAME", help="Which of several tasks."),
    model: str = option("", "NAME", help="Who answered, where the logs do not say."),
    test_share: float | None = option(
        None, "X", help="Split anew by query, with this share for tests. The logs' own split by default.", at_most=1
    ),
    seed: int = option(0, "N", help="Seed of that split.", at_least=0),
) -> None:
    """Write the published logs of Prompt-OIRL as demonstrations.

    What of them is left out, and what is odd about the rest, is told on standard error. The published repository has
    no queries: give them. A split in which queries stand on both sides can be replaced with --test-share; prompts that
    were held out of training stay so.
    """
    # NumPy, and Arrow where a file is Parquet: wrong usage is told before that.
    from drpo_graph.oirl.checks import check_demonstrations
    from drpo_graph.oirl.demonstrations import Demonstrations
    from drpo_graph.oirl.published import read_published
    from drpo_graph.oirl.splits import drop_from_train, held_out_prompts, split_by_query
    from drpo_graph.oirl.tables import save_demonstrations

    check_is_no_input(output, [*folder.glob("*"), *(one for one in (queries, prompts) if one is not None)])
    logs = read_published(folder, queries=queries, task=task, prompts=prompts, model=model)
    table = Demonstrations.from_rows(logs)
    if test_share is not None:
        split = split_by_query(table, test_share=test_share, seed=seed)
        table = drop_from_train(split, held_out_prompts(table))
    num_rows = save_demonstrations(output, table)
    for note in (*logs.left_out, *check_demonstrations(table)):
        typer.echo(inert(f"note: {note}", max_chars=_MAX_LINE), err=True)
    sides = ", ".join(f"{int(table.is_in(side).sum())} {side}" for side in ("train", "test"))
    for line in (
        f"{num_rows} demonstrations in {output}: {sides}",
        f"next: {tell_command(f'drpo oirl inspect {shlex.quote(str(output))}')}",
    ):
        write_lines(sys.stdout, inert(line, max_chars=_MAX_LINE))
