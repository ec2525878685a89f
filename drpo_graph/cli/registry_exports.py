"""``drpo export --registry``: a finished run's prompt, kept by its model's name."""

import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from drpo_graph.cli.registry_commands import keep_and_tell
from drpo_graph.errors import UsageError
from drpo_graph.prompts.placeholders import find_style
from drpo_graph.registry import PromptRegistry, RegisteredPrompt
from drpo_graph.storage.protocols import Storage

ExportRegistryOption = Annotated[
    Path | None,
    typer.Option(
        "--registry", metavar="DIR", help="Keep the run's prompt, with its provenance, in this folder of prompts."
    ),
]
ExportModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Its model's name there; the run's base model by default.")
]


class RegistryEntry(NamedTuple):
    """Where a run's prompt is to be kept, and what its user says of it."""

    folder: Path
    model: str | None
    licence: str | None


def read_entry(folder: Path | None, *, model: str | None, licence: str | None) -> RegistryEntry | None:
    """Return what the flags say, or ``None`` where no registry is named.

    Raises:
        UsageError: there is something to say and no registry to say it in.
    """
    if folder is not None:
        return RegistryEntry(folder, model, licence)
    if model is not None or licence is not None:
        raise UsageError("drpo export: --model and --licence are for the folder of prompts. Name it with --registry.")
    return None


async def register_run(storage: Storage, thread_id: str, entry: RegistryEntry) -> None:
    """Keep a finished run's prompt, and say so.

    Raises:
        UsageError: the run has no prompt to keep, or its model has no name.
    """
    from drpo_graph.cli.reading import load_run  # Loads LangGraph.

    run = await load_run(storage, thread_id)
    if run.record.kind == "icl":
        raise UsageError(f"Run {thread_id!r} optimises ICL examples: it has no prompt. Name a run of drpo optimize.")
    if run.result is None:
        raise UsageError(f"Run {thread_id!r} has no result yet: it is {run.record.status}. `drpo resume` ends it.")
    settings = run.record.settings
    model = entry.model or settings.base.model
    if not model:
        raise UsageError(f"Run {thread_id!r} names no base model. Give the prompt's with --model.")
    prompt = RegisteredPrompt.from_result(
        run.result,
        model=model,
        source=storage.name,
        date=datetime.datetime.fromtimestamp(run.record.updated_at, datetime.UTC).date(),
        licence=entry.licence,
        placeholders=find_style(settings.initial_prompt, settings.placeholders),
    )
    keep_and_tell(PromptRegistry(entry.folder), prompt)
