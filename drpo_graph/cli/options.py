"""The options of ``drpo``, each declared once; parameter names of the published code are accepted beside ours."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from drpo_graph.display import DisplayKind

_SEARCH = "Search"
_MODELS = "Models"
_RUN = "Run"
_PUBLISHED = "Names and flags of the published code"

CheckpointOption = Annotated[
    Path, typer.Option("--checkpoint", help="SQLite file that keeps the runs.", rich_help_panel=_RUN)
]
DisplayOption = Annotated[
    DisplayKind, typer.Option("--display", help="What to show while it runs.", rich_help_panel=_RUN)
]
LogDirOption = Annotated[
    Path | None,
    typer.Option("--log-dir", help="Run folder; beside the checkpoint by default.", rich_help_panel=_RUN),
]
LogLevelOption = Annotated[
    Literal["DEBUG", "INFO", "WARNING"],
    typer.Option("--logging-level", case_sensitive=False, help="Of the run's log.txt.", rich_help_panel=_RUN),
]
QueriesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Datasets: folder, JSONL, JSON, CSV or text file, '-' for stdin. Bundled set if absent."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model of all roles, provider:model.", rich_help_panel=_MODELS)
]
BaseModelOption = Annotated[
    str | None,
    typer.Option("--base-model", "--base-model-name", help="Model to align.", rich_help_panel=_MODELS),
]
MetricsModelOption = Annotated[
    str | None,
    typer.Option("--metrics-model", "--metrics-model-name", help="Selects metrics.", rich_help_panel=_MODELS),
]
CriticModelOption = Annotated[
    str | None,
    typer.Option("--critic-model", "--eval-model-name", help="Scores responses.", rich_help_panel=_MODELS),
]
OptimizerModelOption = Annotated[
    str | None,
    typer.Option("--optimizer-model", "--optimize-model-name", help="Writes prompts.", rich_help_panel=_MODELS),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option("--base-url", help="OpenAI-compatible API of all roles, ends in /v1.", rich_help_panel=_MODELS),
]
ApiKeyEnvOption = Annotated[
    str | None,
    typer.Option("--api-key-env", help="Environment variable with the key.", rich_help_panel=_MODELS),
]
InitialPromptOption = Annotated[
    str | None,
    typer.Option(
        "--initial-prompt",
        "--initial-system-prompt",
        help="Prompt to start from; @FILE reads it from a file.",
        rich_help_panel=_SEARCH,
    ),
]
DepthOption = Annotated[
    int | None,
    typer.Option("--depth", help="Depth of the tree, the root counted: levels + 1.", rich_help_panel=_SEARCH),
]
MaxDepthIncreaseOption = Annotated[
    int | None,
    typer.Option("--max-depth-increase", help="Levels that easy levels may add.", rich_help_panel=_SEARCH),
]
BeamSizeOption = Annotated[
    int | None, typer.Option("--beam-size", help="Candidates kept per level.", rich_help_panel=_SEARCH)
]
NActionsOption = Annotated[
    int | None, typer.Option("--n-actions", help="Rewrites per candidate.", rich_help_panel=_SEARCH)
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", help="Of the optimizer.", rich_help_panel=_SEARCH)
]
QueriesPerLevelOption = Annotated[
    int | None, typer.Option("--queries-per-level", help="Queries per level.", rich_help_panel=_SEARCH)
]
QueryPolicyOption = Annotated[
    Literal["stream", "pool"] | None,
    typer.Option("--query-policy", help="New queries each level, or a pool.", rich_help_panel=_SEARCH),
]
PoolSizeOption = Annotated[
    int | None, typer.Option("--pool-size", help="Queries in the pool.", rich_help_panel=_SEARCH)
]
KeepParentsOption = Annotated[
    bool | None,
    typer.Option("--keep-parents/--drop-parents", help="Parents compete too.", rich_help_panel=_SEARCH),
]
NumQueriesOption = Annotated[
    int | None,
    typer.Option("--num-queries", "--num-training-examples", help="Training queries to use.", rich_help_panel=_SEARCH),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every draw.", rich_help_panel=_SEARCH)]
CompatOption = Annotated[
    Literal["none", "drpo"] | None,
    typer.Option("--compat", help="drpo: the published search, rule by rule.", rich_help_panel=_SEARCH),
]
ValidationOption = Annotated[
    list[str] | None,
    typer.Option("--validation", help="Held-out dataset for the final choice.", rich_help_panel=_SEARCH),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option("--templates", help="Folder whose prompt templates replace ours.", rich_help_panel=_SEARCH),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file, TOML or JSON.", rich_help_panel=_RUN)
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, NAME=VALUE, e.g. critic.max_tokens=512.", rich_help_panel=_RUN),
]
ThreadIdOption = Annotated[
    str | None, typer.Option("--thread-id", help="Name of the run; new by default.", rich_help_panel=_RUN)
]
DisableLogOption = Annotated[bool, typer.Option("--disable-log", help="Write no run folder.", rich_help_panel=_RUN)]
MaxConcurrencyOption = Annotated[
    int | None, typer.Option("--max-concurrency", help="Calls in flight per endpoint.", rich_help_panel=_RUN)
]
RequestsPerSecondOption = Annotated[
    float | None, typer.Option("--requests-per-second", help="Rate limit per endpoint.", rich_help_panel=_RUN)
]
DataDirOption = Annotated[
    str | None,
    typer.Option("--data-dir", help="A dataset folder, as an argument would be.", rich_help_panel=_PUBLISHED),
]
IsGptOption = Annotated[
    bool | None,
    typer.Option("--is-gpt/--no-is-gpt", help="Chat roles, or one flat prompt.", rich_help_panel=_PUBLISHED),
]
BaseModelFamilyOption = Annotated[
    str | None,
    typer.Option("--base-model-family", help="Accepted; not needed.", rich_help_panel=_PUBLISHED),
]
DisableTqdmOption = Annotated[bool, typer.Option("--disable-tqdm", help="No live panel.", rich_help_panel=_PUBLISHED)]

MetricsCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--metrics-cache",
        "--metrics-cache-path",
        help="Metrics selected before, in the published JSON form.",
        rich_help_panel=_SEARCH,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Go on although settings, prompts or data changed.", rich_help_panel=_RUN)
]
RunArgument = Annotated[str, typer.Argument(metavar="THREAD", help="The run's name; `drpo runs` lists them.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Wait for further events until the run ends.")]
