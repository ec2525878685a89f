"""``drpo oirl``: the commands of Prompt-OIRL under one name."""

import typer

from drpo_graph.cli.lazy_commands import Listed, group_of

_HOME = "drpo_graph.cli.commands.oirl"
COMMANDS = {
    "collect": Listed(
        f"{_HOME}.collect:collect_command",
        "Try every prompt on every query, judge the answers, and keep the outcomes as demonstrations.",
    ),
    "from-run": Listed(
        f"{_HOME}.from_run:from_run_command",
        "Write the critiques of searches as demonstrations: query, candidate's prompt, and its reward from 0 to 1.",
    ),
    "import": Listed(
        f"{_HOME}.import_logs:import_logs_command", "Write the published logs of Prompt-OIRL as demonstrations."
    ),
    "inspect": Listed(
        f"{_HOME}.inspect_table:inspect_command",
        "Show what demonstrations hold: rows, queries, prompts with their mean outcome, and what is odd about them.",
    ),
    "train": Listed(
        f"{_HOME}.train:train_command", "Learn from demonstrations which prompt suits a query, and write a router."
    ),
    "evaluate": Listed(
        f"{_HOME}.evaluate:evaluate_command",
        "Compare ways of choosing prompts on logs: single prompts, reward models, the router, the oracle.",
    ),
    "select": Listed(
        f"{_HOME}.select:select_command", "Print the prompt that a router chooses for QUERY, without asking a model."
    ),
}

app = typer.Typer(cls=group_of(COMMANDS), no_args_is_help=False, add_completion=False)


@app.callback()
def _oirl() -> None:
    """Learn from logs which prompt suits a query (Prompt-OIRL)."""
