"""``drpo import`` and ``drpo prompts``: keep optimised prompts by model name, and show them."""

import datetime
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from drpo_graph.cli.option_groups import FLAG, argument, option, takes_options
from drpo_graph.cli.places import DEFAULT_PROMPTS
from drpo_graph.display.streams import write_lines
from drpo_graph.errors import CheckpointError, DRPOError, UsageError
from drpo_graph.registry import PromptForm, PromptRegistry, RegisteredPrompt, read_published_prompt, render_prompt
from drpo_graph.registry.forms import describe_provenance
from drpo_graph.registry.published import OUTPUT_NAMES, is_model_mapping, read_model_mapping
from drpo_graph.safety.private_files import write_atomically
from drpo_graph.safety.terminal import inert, inert_block

_TRACES: Final = "traces"
_MAPPING: Final = "model_mapping.json"
_ROUTER_SUFFIX: Final = ".npz"
_MAX_LINE: Final = 2000
_MAX_PROMPT: Final = 1_000_000

_ResultArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="[traces] FILE|FOLDER",
        help=f"output.pkl, .json or .txt, a folder with one, {_MAPPING}, or a router ({_ROUTER_SUFFIX}); after "
        f"`{_TRACES}`, a file of traces.",
    ),
]
LicenceOption = Annotated[
    str | None, typer.Option("--licence", metavar="TEXT", help="Under which the prompt may be used; kept with it.")
]


@takes_options
def import_command(
    *,
    paths: _ResultArgument,
    model: str | None = option(None, "NAME", help="The model's name; else that of the result's folder."),
    registry: Path = option(DEFAULT_PROMPTS, "DIR", help="The folder of prompts."),
    licence: LicenceOption = None,
    output: Path | None = option(None, "FILE", help="Of traces: the dataset to write.", flag="--output -o"),
    max_rating: float | None = option(None, "X", help="Of traces: only those of which a rating is at most this."),
    failed_only: bool = option(False, FLAG, help="Of traces: only those that ended in an error."),
) -> None:
    """Keep a published result's, a run's or a mapping's prompts by model name, or make a dataset of traces.

    Nothing that a pickle names is executed. What a mapping names and is not there is told, and the rest is kept; the
    exit code is 1 then. Of a router a copy is kept: it chooses a prompt for each query that the model is asked.

    `drpo import traces FILE --output queries.jsonl` writes what an app was asked, as LangSmith, Langfuse or MLflow keep
    it or as conversations in OpenAI's form, as a dataset for `drpo optimize`.
    """
    if len(paths) == 2 and str(paths[0]) == _TRACES:
        if model is not None or licence is not None:
            raise UsageError("drpo import traces: --model and --licence are for prompts. Leave them out.")
        # It asks for nothing else of this module's.
        from drpo_graph.cli.commands.traces import write_traces

        write_traces(paths[1], output, max_rating=max_rating, failed_only=failed_only)
        return
    if len(paths) > 1:
        raise UsageError(f"drpo import: expected one file or folder, or `{_TRACES}` and a file, got {len(paths)}.")
    if output is not None or max_rating is not None or failed_only:
        raise UsageError(f"drpo import: --output, --max-rating and --failed-only are for `drpo import {_TRACES} FILE`.")
    _import_prompts(paths[0], model, registry, licence)


def _import_prompts(path: Path, model: str | None, registry: Path, licence: str | None) -> None:
    mapping = path / _MAPPING if (path / _MAPPING).is_file() else path
    faults: tuple[str, ...] = ()
    router = path if path.suffix == _ROUTER_SUFFIX else None
    if router is not None:
        prompts = _read_router(router, model)
    elif is_model_mapping(mapping):
        prompts, faults = _read_mapping(mapping, model)
    else:
        prompts = {model or _name_folder(path): read_published_prompt(path)}
    for fault in faults:
        typer.echo(inert(fault, max_chars=_MAX_LINE), err=True)
    today = datetime.datetime.now(datetime.UTC).date()
    num_kept = 0
    for name, text in prompts.items():
        prompt = RegisteredPrompt(model=name, system_prompt=text, source=str(path), date=today, licence=licence)
        try:
            keep_and_tell(PromptRegistry(registry), prompt, router=router)
        except DRPOError as error:
            if len(prompts) == 1:
                raise
            # One of several that is not kept keeps the others from nothing.
            typer.echo(inert(f"{name}: {error}", max_chars=_MAX_LINE), err=True)
        else:
            num_kept += 1
    num_wanted = len(prompts) + len(faults)
    if num_kept < num_wanted:
        raise CheckpointError(f"{num_wanted - num_kept} of {num_wanted} prompts were not imported.")


@takes_options
def prompts_command(
    *,
    name: str | None = argument(None, "NAME", help="A model's name; all if absent."),
    registry: Path = option(DEFAULT_PROMPTS, "DIR", help="The folder of prompts."),
    form: PromptForm = option(
        "txt",
        "FORM",
        help="txt, json (with provenance), template (LangChain's ChatPromptTemplate) or hub (LangSmith's prompt hub).",
        flag="--format",
    ),
    output: Path | None = option(
        None, "FILE", help="Write it there, exactly, instead of printing it.", flag="--output -o"
    ),
) -> None:
    """List the prompts that are kept, or give that of one model, in the form that is wanted."""
    kept = PromptRegistry(registry)
    if name is not None:
        _give(kept.require(name), form, output)
        return
    if output is not None or form != "txt":
        raise UsageError("drpo prompts: --format and --output are for one prompt. Name its model.")
    prompts = kept.list()
    for prompt in prompts:
        say(_describe(prompt))
    if not prompts:
        say(f"No prompts in {registry}. `drpo import` adds one.")


def keep_and_tell(kept: PromptRegistry, prompt: RegisteredPrompt, *, router: Path | None = None) -> None:
    """Keep a prompt, with a copy of its router where it has one, and say what it replaces.

    Raises:
        UsageError: it cannot be kept.
    """
    try:
        former = kept.find(prompt.model)
    except UsageError as error:
        # A damaged file is mended by being replaced; whatever else is wrong, adding tells.
        say(f"{error} It is replaced.")
        former = None
    what = f"{len(prompt.system_prompt)} characters"
    if router is None:
        kept.add(prompt)
    else:
        kept.add_router(prompt, router)
        what = "a router"
    told = f"{prompt.model}: {what} kept in {kept.folder}"
    if former is not None and former.router is not None:
        told += f", in place of the router from {former.source or 'elsewhere'}"
    elif former is not None and former.system_prompt != prompt.system_prompt:
        told += f", in place of those from {former.run or former.source or 'elsewhere'}"
    say(told)


def _read_router(path: Path, model: str | None) -> dict[str, str]:
    """Return a router's best single prompt by the name of its model."""
    if model is None:
        raise UsageError(f"Router {path}: say with --model whose prompts it chooses.")
    # Loads NumPy.
    from drpo_graph.oirl.router import find_best_prompt
    from drpo_graph.oirl.router_file import read_router

    parts = read_router(path)
    return {model: parts.prompts[find_best_prompt(parts)].text}


def _read_mapping(path: Path, model: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return a mapping's prompts, or that of one model alone, and what is wrong with the others."""
    prompts, faults = read_model_mapping(path)
    if model is None:
        return prompts, faults
    chosen = {name: one for name, one in prompts.items() if name == model}
    wrong = tuple(one for one in faults if one.startswith(f"{model}: "))
    if not chosen and not wrong:
        raise UsageError(f"--model {model}: {path} does not name it. Give a name that stands there.")
    return chosen, wrong


def _give(prompt: RegisteredPrompt, form: PromptForm, output: Path | None) -> None:
    text = render_prompt(prompt, form)
    if output is None:
        for line in describe_provenance(prompt) if form == "txt" else ():
            # Beside the prompt, so that this alone goes where stdout leads.
            typer.echo(inert(line, max_chars=_MAX_LINE), err=True)
        write_lines(sys.stdout, inert_block(text, max_chars=_MAX_PROMPT))
        return
    try:
        write_atomically(output, text.encode())
    except OSError as error:
        raise CheckpointError(f"File {output}: {error.strerror or error}. Give another one with --output.") from error
    say(f"{prompt.model}: written to {output}")


def _name_folder(path: Path) -> str:
    if not path.is_dir() and path.name not in OUTPUT_NAMES:
        # Only a result stands in a folder of its model's name.
        raise UsageError(f"Prompt {path}: say with --model whose prompt it is, e.g. --model openai:gpt-5-mini.")
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if not folder.name:
        raise UsageError(f"Result {path}: its folder has no name. Name the model with --model.")
    return folder.name


def _describe(prompt: RegisteredPrompt) -> str:
    parts = [prompt.model, f"{len(prompt.system_prompt)} characters"]
    if prompt.router is not None:
        parts.append("chosen by a router")
    if prompt.reward is not None:
        parts.append(f"reward {prompt.reward:.2f}")
    if prompt.difference is not None:
        parts.append(f"{prompt.difference:+.2f}{'' if prompt.is_significant else ' (not significant)'}")
    origin = prompt.run or prompt.source
    return "  ".join([*parts, f"from {origin}"] if origin else parts)


def say(text: str) -> None:
    """Print a line without what a terminal would obey."""
    write_lines(sys.stdout, inert(text, max_chars=_MAX_LINE))
