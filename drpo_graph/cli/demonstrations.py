"""What the commands that learn from demonstrations share: the table, and what embeds its texts."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from drpo_graph.cli.option_groups import OptionGroup, option
from drpo_graph.errors import UsageError
from drpo_graph.safety.terminal import inert
from drpo_graph.settings.retrieval import DEFAULT_EMBEDDINGS

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from drpo_graph.oirl.demonstrations import Demonstrations

_MAX_LINE = 2000


class EmbeddingOptions(OptionGroup, panel="Embeddings"):
    """What embeds queries and prompts."""

    embeddings: str = option(DEFAULT_EMBEDDINGS, "MODEL", help="openai:NAME, or the embedded one.")
    embeddings_base_url: str | None = option(None, "URL", help="OpenAI-compatible API of --embeddings.")
    embeddings_cache: Path | None = option(None, "FILE", help="Keeps embeddings for other commands.")

    def open(self) -> "Embeddings":
        """Return it; nothing is embedded yet."""
        from drpo_graph.oirl.router_file import open_embeddings  # Loads LangChain.

        return open_embeddings(self.embeddings, base_url=self.embeddings_base_url, file=self.embeddings_cache)


def read_table(sources: Sequence[Path], *, model: str | None) -> "Demonstrations":
    """Return the demonstrations in tables, folders of tables, or a folder of published logs.

    Raises:
        DemonstrationsError: they cannot be read.
    """
    from drpo_graph.oirl.demonstrations import Demonstrations
    from drpo_graph.oirl.published import holds_published, read_published
    from drpo_graph.oirl.tables import load_demonstrations

    if len(sources) == 1 and holds_published(sources[0]):
        logs = read_published(sources[0], model=model or "")
        tell([f"note: {one}" for one in logs.left_out])
        return Demonstrations.from_rows(logs)
    return load_demonstrations(sources, models=(model,) if model else ())


def check_is_no_input(output: Path, inputs: Iterable[Path | str]) -> None:
    """Do nothing where an output is none of the files that are read.

    Raises:
        UsageError: it is one, which would be lost.
    """
    for given in inputs:
        # A dataset may be '-', or a name that no file has.
        if os.path.exists(given) and os.path.exists(output) and os.path.samefile(given, output):
            raise UsageError(f"--output {output}: this file is read, and would be overwritten. Name another.")


def tell(lines: Sequence[str]) -> None:
    """Write lines to stderr."""
    for line in lines:
        typer.echo(inert(line, max_chars=_MAX_LINE), err=True)
