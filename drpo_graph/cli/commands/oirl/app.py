"""``drpo oirl``: the commands of Prompt-OIRL under one name."""

import typer

from drpo_graph.cli.commands.oirl.collect import collect_command
from drpo_graph.cli.commands.oirl.evaluate import evaluate_command
from drpo_graph.cli.commands.oirl.from_run import from_run_command
from drpo_graph.cli.commands.oirl.import_logs import import_logs_command
from drpo_graph.cli.commands.oirl.inspect_table import inspect_command
from drpo_graph.cli.commands.oirl.select import select_command
from drpo_graph.cli.commands.oirl.train import train_command

app = typer.Typer(no_args_is_help=False)


@app.callback()
def _oirl() -> None:
    """Learn from logs which prompt suits a query."""


for _name, _command in (
    ("collect", collect_command),
    ("from-run", from_run_command),
    ("import", import_logs_command),
    ("inspect", inspect_command),
    ("train", train_command),
    ("evaluate", evaluate_command),
    ("select", select_command),
):
    # Typer keeps the line breaks of a docstring: the terminal's width should decide.
    app.command(_name, help="\n\n".join(" ".join(one.split()) for one in (_command.__doc__ or "").split("\n\n")))(
        _command
    )
