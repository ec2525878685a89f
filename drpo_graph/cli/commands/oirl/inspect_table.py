"""``drpo oirl inspect``: what a table of demonstrations holds."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.option_groups import option, takes_options
from drpo_graph.display.streams import quiet, write_lines
from drpo_graph.safety.terminal import inert_json

if TYPE_CHECKING:
    from drpo_graph.oirl.summary import TableSummary


@takes_options
def inspect_command(
    *,
    tables: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Demonstrations, .parquet or .jsonl, or folders of them.")
    ],
    model: list[str] | None = option(None, "NAME", help="Only what this model answered; may be given several times."),
    as_json: flags.JsonOption = False,
) -> None:
    """Show what demonstrations hold: rows, queries, prompts with their mean outcome, and what is odd about them.

    Where queries stand on both sides of the split, it tells what looking up their earlier answers would score.
    """
    # NumPy, and Arrow where a file is Parquet: wrong usage is told before that.
    from drpo_graph.oirl.summary import summarise_demonstrations
    from drpo_graph.oirl.tables import load_demonstrations

    summary = summarise_demonstrations(load_demonstrations(tables, models=model or ()))
    if as_json:
        write_lines(sys.stdout, inert_json(json.dumps(_to_json(summary), indent=2, ensure_ascii=False)))
        return
    from drpo_graph.cli.pages.demonstrations import print_demonstrations

    print_demonstrations(summary, quiet(sys.stdout))


def _to_json(summary: "TableSummary") -> dict[str, object]:
    leak = summary.leak
    return {
        **summary._asdict(),
        "by_side": {side: one._asdict() for side, one in summary.by_side.items()},
        "prompts": [
            {**one._asdict(), "by_side": {side: counts._asdict() for side, counts in one.by_side.items()}}
            for one in summary.prompts
        ],
        "leak": None if leak is None else {**leak._asdict(), "lookup_prompt_ids": leak.lookup_prompt_ids.tolist()},
    }
