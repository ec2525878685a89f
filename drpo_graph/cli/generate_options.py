"""The options of ``drpo generate`` that no other command has."""

from pathlib import Path
from typing import Annotated

import typer

_PROMPT = "System prompt"
_EXAMPLES = "ICL examples"
_SAMPLING = "Sampling"
_MODELS = "Models"

QueryArgument = Annotated[
    str | None, typer.Argument(metavar="QUERY", help="What the model is asked; '-' reads it from stdin.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="provider:model; with --run, that run's by default.", rich_help_panel=_MODELS
    ),
]
SystemPromptOption = Annotated[
    str | None,
    typer.Option(
        "--system-prompt",
        metavar="TEXT",
        help="Prompt of your own; @FILE reads it from a file.",
        rich_help_panel=_PROMPT,
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="THREAD", help="The prompt that a finished run found.", rich_help_panel=_PROMPT),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="NAME",
        help="The registry's prompt for the model of this name; for MODEL by default.",
        rich_help_panel=_PROMPT,
    ),
]
RegistryOption = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="DIR",
        help="Folder of optimised prompts; drpo_prompts by default, if there is one.",
        rich_help_panel=_PROMPT,
    ),
]
NumICLOption = Annotated[
    int | None,
    typer.Option(
        "--num-icl",
        metavar="N",
        help="ICL examples shown, 0 to 5; with --run as many as there, else 0, by default.",
        rich_help_panel=_EXAMPLES,
    ),
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="X", help="0 by default.", rich_help_panel=_SAMPLING)
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", metavar="X", help="1 by default.", rich_help_panel=_SAMPLING)
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", help="Longest response, in tokens.", rich_help_panel=_SAMPLING),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="Ends the response; may be given several times.",
        rich_help_panel=_SAMPLING,
    ),
]
