"""``drpo oirl select``: the prompt that a router chooses for a query."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.demonstrations import tell
from drpo_graph.cli.option_groups import argument, option, takes_options
from drpo_graph.display.streams import write_lines
from drpo_graph.errors import UsageError
from drpo_graph.safety.terminal import inert_block, inert_json
from drpo_graph.safety.text_files import read_stream
from drpo_graph.safety.texts import clean_surrogates

if TYPE_CHECKING:
    from drpo_graph.oirl.router import PromptRouter

_MAX_PROMPT = 100_000


@takes_options
def select_command(
    *,
    query: str | None = argument(None, "QUERY", help="The query; '-' reads queries from stdin, one a line."),
    router: Annotated[Path, typer.Option("--router", "-r", metavar="FILE", help="The router, a .npz file.")],
    prompts: Path | None = option(
        None, "FILE", help="Choose among these: JSON lines, JSON list or text. Those it learned from by default."
    ),
    anchors: list[Path] | None = option(
        None, "FILE", help="Labelled trials of --prompts that were never tried: a few dozen correct what is expected."
    ),
    embeddings_base_url: str | None = option(None, "URL", help="OpenAI-compatible API of the router's embeddings."),
    as_json: flags.JsonOption = False,
) -> None:
    """Print the prompt that a router chooses for QUERY, without asking a model."""
    texts = _read_queries(query)
    if anchors and prompts is None:
        raise UsageError("--anchors: say with --prompts which prompts they are trials of.")
    # NumPy and LangChain: wrong usage is told before that.
    from drpo_graph.oirl.router import PromptRouter, RouterInput
    from drpo_graph.oirl.router_file import open_embeddings_of, read_router

    parts = read_router(router)
    embeddings = open_embeddings_of(parts.provenance, base_url=embeddings_base_url)
    chooser = PromptRouter(parts, embeddings)
    if prompts is not None:
        chooser = asyncio.run(_offer(chooser, prompts, anchors=anchors or ()))
    asked: list[RouterInput] = [*texts]
    for one, choice in zip(texts, chooser.batch(asked), strict=True):
        if as_json:
            told = {"query": one, **choice.model_dump(mode="json")}
            write_lines(sys.stdout, inert_json(json.dumps(told, ensure_ascii=False)))
        else:
            write_lines(sys.stdout, inert_block(choice.prompt, max_chars=_MAX_PROMPT))


async def _offer(router: "PromptRouter", prompts: Path, *, anchors: Sequence[Path]) -> "PromptRouter":
    from drpo_graph.oirl.anchors import offer_prompts
    from drpo_graph.oirl.collection.inputs import load_tried_prompts
    from drpo_graph.oirl.tables import load_demonstrations

    offered = load_tried_prompts(prompts)
    labelled = load_demonstrations(anchors) if anchors else None
    if labelled is not None and (others := set(labelled.prompts) - {one.prompt for one in offered}):
        tell([f"note: --anchors: {len(others)} of its {len(labelled.prompts)} prompts are not in --prompts: left out"])
    return await offer_prompts(
        router,
        [one.prompt for one in offered],
        names=[one.name for one in offered],
        anchors=labelled,
    )


def _read_queries(query: str | None) -> list[str]:
    if query is not None and query != "-":
        return [clean_surrogates(query)]
    if query is None and sys.stdin.isatty():
        raise UsageError("No query. Give it as an argument, or '-' to read queries from stdin.")
    try:
        queries = [clean_surrogates(line) for line in read_stream(sys.stdin).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError("The queries on stdin are not UTF-8 text.") from error
    if not queries:
        raise UsageError("There is no query on stdin.")
    return queries
