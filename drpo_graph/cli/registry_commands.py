"""``drpo import`` and ``drpo prompts``: keep optimised prompts by model name, and show them."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from drpo_graph.cli.places import DEFAULT_PROMPTS
from drpo_graph.display import inert, inert_block
from drpo_graph.display.streams import quiet
from drpo_graph.errors import UsageError
from drpo_graph.prompt_registry import (
    PromptRegistry,
    RegisteredPrompt,
    is_model_mapping,
    read_model_mapping,
    read_published_prompt,
)

_MAPPING: Final = "model_mapping.json"
_EXIT_FAILED: Final = 1
_MAX_LINE: Final = 2000
_MAX_PROMPT: Final = 1_000_000

ResultArgument = Annotated[
    Path, typer.Argument(metavar="FILE|FOLDER", help=f"output.pkl, .json or .txt, a folder with one, or {_MAPPING}.")
]
NameArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="A model's name; all if absent.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The model's name; else that of the result's folder.")
]
RegistryOption = Annotated[Path, typer.Option("--registry", metavar="DIR", help="The folder of prompts.")]


def import_command(path: ResultArgument, model: ModelOption = None, registry: RegistryOption = DEFAULT_PROMPTS) -> None:
    """Keep the prompt of a published result, or of a run's folder, for a model; or all those of a model mapping.

    Nothing that a pickle names is executed. What a mapping names and is not there is told, and the rest is kept.
    """
    mapping = path / _MAPPING if (path / _MAPPING).is_file() else path
    prompts: dict[str, str] = {}
    if is_model_mapping(mapping):
        prompts, faults = read_model_mapping(mapping)
        if model is not None:
            prompts = {name: one for name, one in prompts.items() if name == model}
            faults = tuple(one for one in faults if one.startswith(f"{model}: "))
            if not prompts and not faults:
                raise UsageError(f"--model {model}: {mapping} does not name it. Give a name that stands there.")
        for fault in faults:
            typer.echo(inert(fault, max_chars=_MAX_LINE), err=True)
    else:
        prompts[model or _name_folder(path)] = read_published_prompt(path)
    kept = PromptRegistry(registry)
    for name, text in prompts.items():
        kept.add(RegisteredPrompt(model=name, system_prompt=text, source=str(path)))
        _print(f"Imported the prompt of {name} ({len(text)} characters).")
    if not prompts:
        raise typer.Exit(_EXIT_FAILED)


def prompts_command(name: NameArgument = None, registry: RegistryOption = DEFAULT_PROMPTS) -> None:
    """List the prompts that are kept, or print that of one model."""
    kept = PromptRegistry(registry)
    if name is not None:
        prompt = kept.find(name)
        if prompt is None:
            raise UsageError(f"No prompt of {name!r} in {registry}. `drpo prompts` lists what there is.")
        _print(prompt.system_prompt)
        return
    prompts = kept.list()
    for prompt in prompts:
        _print(inert(_describe(prompt), max_chars=_MAX_LINE))
    if not prompts:
        _print(f"No prompts in {registry}. `drpo import` adds one.")


def _name_folder(path: Path) -> str:
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if not folder.name:
        raise UsageError(f"Result {path}: its folder has no name. Name the model with --model.")
    return folder.name


def _describe(prompt: RegisteredPrompt) -> str:
    parts = [prompt.model, f"{len(prompt.system_prompt)} characters"]
    if prompt.reward is not None:
        parts.append(f"reward {prompt.reward:.2f}")
    if prompt.difference is not None:
        parts.append(f"{prompt.difference:+.2f}{'' if prompt.is_significant else ' (not significant)'}")
    origin = prompt.run or prompt.source
    return "  ".join([*parts, f"from {origin}"] if origin else parts)


def _print(text: str) -> None:
    """Print text without what a terminal would obey; a reader that has left (``| head``) is no error."""
    stream = quiet(sys.stdout)
    stream.write(f"{inert_block(text, max_chars=_MAX_PROMPT)}\n")
    stream.flush()
