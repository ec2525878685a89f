"""``drpo oirl evaluate``: how well prompts are chosen by query, with intervals."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from drpo_graph.cli.demonstrations import EmbeddingOptions, read_table, tell
from drpo_graph.cli.option_groups import FLAG, option, takes_options
from drpo_graph.display.streams import write_lines
from drpo_graph.errors import UsageError
from drpo_graph.safety.terminal import inert

_MAX_LINE = 2000


@takes_options
def evaluate_command(
    *,
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="DATASET...", help="Demonstrations, .parquet or .jsonl, or a folder of published logs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of tables and figures.")],
    model: str | None = option(None, "NAME", help="Whose answers count, where there are several models'."),
    rounds: int = option(20, "N", help="Splits and seeds that are averaged over.", at_least=1),
    reward_model: list[str] | None = option(
        None,
        "NAME",
        help="May be given several times: network, neighbours, additive (these three by default), lightgbm, "
        "xgboost-quick, xgboost (the paper's).",
    ),
    compared_with: str | None = option(
        None, "NAME", help="Reward model that the others are paired with; xgboost-quick where that is evaluated."
    ),
    test_share: float = option(
        0.3, "X", help="Share of the queries for tests, where the table has no split.", at_least=0.01, at_most=0.99
    ),
    held_out: int | None = option(
        None, "N", help="Prompts to learn nothing of. Those without training rows by default.", at_least=1
    ),
    subsets: bool = option(False, FLAG, help="Also learn from every set of training prompts, as the paper does."),
    seed: int = option(0, "N", help="Seed of every draw.", at_least=0),
    embedding: EmbeddingOptions,
) -> None:
    """Compare ways of choosing prompts on logs: single prompts, reward models, the router, the oracle.

    Writes tables (CSV, Markdown), figures and evaluation.json to the folder, all computed from this run. A split in
    which a question stands on both sides is told, and replaced by one by query text.
    """
    # NumPy and LangChain: wrong usage is told before that.
    from drpo_graph.oirl.evaluation.files import check_folder, render_report, write_evaluation
    from drpo_graph.oirl.evaluation.runner import LIGHT_MODELS, EvaluationSettings, evaluate_demonstrations
    from drpo_graph.oirl.rewards.catalogue import make_reward_model

    names = tuple(reward_model or LIGHT_MODELS)
    for name in names:
        make_reward_model(name)
    if compared_with is not None and compared_with not in names:
        raise UsageError(f"--compared-with {compared_with}: not evaluated. Add --reward-model {compared_with}.")
    check_folder(output)
    settings = EvaluationSettings(
        num_rounds=rounds,
        reward_models=names,
        compared_with=compared_with,
        test_share=test_share,
        num_held_out=held_out,
        has_subsets=subsets,
        seed=seed,
    )
    table = read_table(tables, model=model)
    evaluation = asyncio.run(
        evaluate_demonstrations(
            table, embedding.open(), settings=settings, model=model, notice=lambda line: tell([line])
        )
    )
    files = write_evaluation(output, evaluation)
    for line in render_report(evaluation).splitlines():
        write_lines(sys.stdout, inert(line, max_chars=_MAX_LINE))
    tell([f"written: {', '.join(one.name for one in files)} in {output}"])
