"""``drpo oirl train``: learn a router from demonstrations."""

import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from drpo_graph.cli.demonstrations import EmbeddingOptions, check_is_no_input, read_table, tell
from drpo_graph.cli.option_groups import option, takes_options
from drpo_graph.display.streams import write_lines
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.terminal import inert

if TYPE_CHECKING:
    from drpo_graph.oirl.router import PromptRouter

_MAX_LINE = 2000
_MAX_PRICE = 1_000_000.0


@takes_options
def train_command(
    *,
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Demonstrations, .parquet or .jsonl, or a folder of published logs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The router, a .npz file.")],
    model: str | None = option(None, "NAME", help="Whose answers count, where there are several models'."),
    reward_model: str = option(
        "network", "NAME", help="network, neighbours, additive, lightgbm, xgboost-quick or xgboost."
    ),
    policy: Literal["safe", "best", "fallback"] = option(
        "safe", "KIND", help="safe: by query where evidence supports it; best: highest expected; fallback: the paper's."
    ),
    price: float = option(
        0.0, "X", help="Reward that 1,000 tokens are worth, taken off each prompt's.", at_least=0, at_most=_MAX_PRICE
    ),
    portfolio: int | None = option(
        None, "N", help="Keep so many prompts at most: those that together serve queries best.", at_least=1
    ),
    seed: int = option(0, "N", help="Seed of every draw.", at_least=0),
    embedding: EmbeddingOptions,
) -> None:
    """Learn from demonstrations which prompt suits a query, and write a router.

    Rows of the test side are left out. The router says whether choosing by query is worth it: where the evidence does
    not support it, every query gets the best single prompt.
    """
    # NumPy and LangChain: wrong usage is told before that.
    from drpo_graph.oirl.checks import check_demonstrations, choose_model
    from drpo_graph.oirl.rewards.catalogue import make_reward_model
    from drpo_graph.oirl.router_file import check_router_path
    from drpo_graph.oirl.training import TrainingSettings, train_router

    make_reward_model(reward_model)
    check_router_path(output)
    check_is_no_input(output, tables)
    table = choose_model(read_table(tables, model=model), model)
    tell([f"note: {one}" for one in check_demonstrations(table)])
    settings = TrainingSettings(
        reward_model=reward_model, policy=policy, price_per_1k=price, portfolio=portfolio, seed=seed
    )
    training = train_router(
        table,
        settings=settings,
        embeddings=embedding.open(),
        embeddings_name=embedding.embeddings,
        # A folder of published logs may give all its rows the name.
        model=model,
    )
    router = asyncio.run(training)
    router.save(output)
    for line in _describe(router, output, base_url=embedding.embeddings_base_url):
        write_lines(sys.stdout, inert(line, max_chars=_MAX_LINE))


def _describe(router: "PromptRouter", output: Path, *, base_url: str | None) -> list[str]:
    known, found = router.parts.provenance, router.parts.portfolio
    # Queries are sent nowhere that is not named again.
    place = "" if base_url is None else f" --embeddings-base-url {shlex.quote(base_url)}"
    return [
        f"learned from {known.num_rows} trials of {len(router.prompts)} prompts on {known.num_queries} queries",
        *([f"portfolio: {found.reason}"] if found is not None else []),
        f"best single prompt: {router.prompts[router.parts.gate.best].name}",
        f"{'chooses by query' if not router.has_abstained else 'abstains'}: {router.parts.gate.reason}",
        f"router: {output}",
        f"next: {tell_command(f'drpo oirl select --router {shlex.quote(str(output))}{place} QUERY')}",
    ]
