"""The options of ``drpo``, each declared once; parameter names of the published code are accepted beside ours."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from drpo_graph.display import DisplayKind

_SEARCH = "Search"
_MODELS = "Models"
_RUN = "Run"
_BUDGET = "Budget"
_PUBLISHED = "Flags of the published code"
_FLAG = " "
"""In place of a type: a flag takes no value."""

FLAG_BY_PUBLISHED_NAME = {
    "--base-model-name": "--base-model",
    "--metrics-model-name": "--metrics-model",
    "--eval-model-name": "--critic-model",
    "--optimize-model-name": "--optimizer-model",
    "--initial-system-prompt": "--initial-prompt",
    "--num-training-examples": "--num-queries",
    "--metrics-cache-path": "--metrics-cache",
}
"""Accepted everywhere; the help names them once."""

CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="PLACE",
        help="What keeps the runs: a SQLite file, or a database, postgresql://USER@HOST/NAME.",
        rich_help_panel=_RUN,
    ),
]
DisplayOption = Annotated[
    DisplayKind,
    typer.Option("--display", metavar="KIND", help="What to show: rich, plain, jsonl or none.", rich_help_panel=_RUN),
]
LogDirOption = Annotated[
    Path | None,
    typer.Option(
        "--log-dir",
        metavar="DIR",
        help="Run folder; beside the file, or in drpo_runs, by default.",
        rich_help_panel=_RUN,
    ),
]
LogLevelOption = Annotated[
    Literal["DEBUG", "INFO", "WARNING"],
    typer.Option(
        "--logging-level",
        metavar="LEVEL",
        case_sensitive=False,
        help="Of log.txt: DEBUG, INFO or WARNING.",
        rich_help_panel=_RUN,
    ),
]
QueriesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA...",
        help="Datasets: folder, JSONL, JSON, CSV or text file, '-' for stdin. Bundled set if absent.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Model of all roles, provider:model.", rich_help_panel=_MODELS),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option("--base-model", metavar="MODEL", help="Model to align.", rich_help_panel=_MODELS),
]
MetricsModelOption = Annotated[
    str | None,
    typer.Option("--metrics-model", metavar="MODEL", help="Selects metrics.", rich_help_panel=_MODELS),
]
CriticModelOption = Annotated[
    str | None,
    typer.Option("--critic-model", metavar="MODEL", help="Scores responses.", rich_help_panel=_MODELS),
]
OptimizerModelOption = Annotated[
    str | None,
    typer.Option("--optimizer-model", metavar="MODEL", help="Writes prompts.", rich_help_panel=_MODELS),
]
BaseUrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="OpenAI-compatible API of all roles, ending in /v1; once per server of the model.",
        rich_help_panel=_MODELS,
    ),
]
ApiKeyEnvOption = Annotated[
    str | None,
    typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key.", rich_help_panel=_MODELS),
]
ServeOption = Annotated[
    bool,
    typer.Option(
        "--serve",
        metavar=_FLAG,
        help="Start vLLM for the roles' vllm:NAME, and stop it after the run.",
        rich_help_panel=_MODELS,
    ),
]
ServeOptionsOption = Annotated[
    str | None,
    typer.Option(
        "--serve-options",
        metavar="TEXT",
        help="What `drpo serve` would be given, in quotes.",
        rich_help_panel=_MODELS,
    ),
]
InitialPromptOption = Annotated[
    str | None,
    typer.Option(
        "--initial-prompt",
        metavar="TEXT",
        help="Prompt to start from; @FILE reads it from a file.",
        rich_help_panel=_SEARCH,
    ),
]
WarmStartOption = Annotated[
    str | None,
    typer.Option(
        "--warm-start",
        metavar="WHAT",
        help="Start from what was found: a file with a prompt, a former run, a model with a kept prompt.",
        rich_help_panel=_SEARCH,
    ),
]
DepthOption = Annotated[
    int | None,
    typer.Option("--depth", metavar="N", help="Levels + 1: the root counts.", rich_help_panel=_SEARCH),
]
MaxDepthIncreaseOption = Annotated[
    int | None,
    typer.Option("--max-depth-increase", metavar="N", help="Levels that easy levels may add.", rich_help_panel=_SEARCH),
]
BeamSizeOption = Annotated[
    int | None, typer.Option("--beam-size", metavar="N", help="Candidates kept per level.", rich_help_panel=_SEARCH)
]
NActionsOption = Annotated[
    int | None, typer.Option("--n-actions", metavar="N", help="Rewrites per candidate.", rich_help_panel=_SEARCH)
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="X", help="The optimizer's.", rich_help_panel=_SEARCH)
]
QueriesPerLevelOption = Annotated[
    int | None, typer.Option("--queries-per-level", metavar="N", help="Queries per level.", rich_help_panel=_SEARCH)
]
QueryPolicyOption = Annotated[
    Literal["stream", "pool"] | None,
    typer.Option(
        "--query-policy",
        metavar="KIND",
        help="stream: new queries each level; pool: a few used again.",
        rich_help_panel=_SEARCH,
    ),
]
PoolSizeOption = Annotated[
    int | None, typer.Option("--pool-size", metavar="N", help="Queries in the pool.", rich_help_panel=_SEARCH)
]
KeepParentsOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-parents/--drop-parents",
        metavar=_FLAG,
        help="Whether parents compete with their rewrites.",
        rich_help_panel=_SEARCH,
    ),
]
NumQueriesOption = Annotated[
    int | None,
    typer.Option("--num-queries", metavar="N", help="Training queries to use.", rich_help_panel=_SEARCH),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of every draw.", rich_help_panel=_SEARCH)
]
CompatOption = Annotated[
    Literal["none", "drpo"] | None,
    typer.Option("--compat", metavar="NAME", help="drpo: the published search, rule by rule.", rich_help_panel=_SEARCH),
]
ValidationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--validation", metavar="DATA", help="Held-out dataset for the final choice.", rich_help_panel=_SEARCH
    ),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates", metavar="DIR", help="Folder whose prompt templates replace ours.", rich_help_panel=_SEARCH
    ),
]
RetIclOption = Annotated[
    bool | None,
    typer.Option(
        "--ret-icl/--no-ret-icl",
        metavar=_FLAG,
        help="Whether responses are sampled with ICL examples like the query.",
        rich_help_panel=_SEARCH,
    ),
]
KOption = Annotated[int | None, typer.Option("--k", metavar="N", help="ICL examples.", rich_help_panel=_SEARCH)]
IclExamplesOption = Annotated[
    Path | None,
    typer.Option(
        "--icl-examples", metavar="FILE", help="Own ICL examples, in the published JSON form.", rich_help_panel=_SEARCH
    ),
]
EmbeddingsOption = Annotated[
    str | None,
    typer.Option(
        "--embeddings", metavar="MODEL", help="Finds them: openai:NAME, or the embedded one.", rich_help_panel=_MODELS
    ),
]
EmbeddingsBaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--embeddings-base-url", metavar="URL", help="OpenAI-compatible API of --embeddings.", rich_help_panel=_MODELS
    ),
]
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="MODULE:FUNCTION",
        help="Scores responses in the critic's place; may be given several times.",
        rich_help_panel=_SEARCH,
    ),
]
RewardWeightOption = Annotated[
    float | None,
    typer.Option("--reward-weight", metavar="X", help="Its share; the critic has the rest.", rich_help_panel=_SEARCH),
]
PlaceholdersOption = Annotated[
    Literal["none", "auto", "format", "mustache", "dollar"] | None,
    typer.Option(
        "--placeholders",
        metavar="STYLE",
        help="What the prompt's are like: format {x}, mustache {{x}}, dollar $x, auto.",
        rich_help_panel=_SEARCH,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings, TOML or JSON; flags win over it.", rich_help_panel=_RUN),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any setting, e.g. critic.max_tokens=512; wins over flags.",
        rich_help_panel=_RUN,
    ),
]
ThreadIdOption = Annotated[
    str | None,
    typer.Option("--thread-id", metavar="NAME", help="Name of the run; new by default.", rich_help_panel=_RUN),
]
DisableLogOption = Annotated[
    bool, typer.Option("--disable-log", metavar=_FLAG, help="Write no run folder.", rich_help_panel=_RUN)
]
MaxConcurrencyOption = Annotated[
    int | None,
    typer.Option("--max-concurrency", metavar="N", help="Calls in flight per endpoint.", rich_help_panel=_RUN),
]
RequestsPerSecondOption = Annotated[
    float | None,
    typer.Option("--requests-per-second", metavar="X", help="Rate limit per endpoint.", rich_help_panel=_RUN),
]
MaxOutageOption = Annotated[
    float | None,
    typer.Option("--max-outage", metavar="S", help="Wait for a lost endpoint; 0 stops at once.", rich_help_panel=_RUN),
]
MaxCallsOption = Annotated[
    int | None,
    typer.Option("--max-calls", metavar="N", help="Model calls that the run may make.", rich_help_panel=_BUDGET),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", help="Tokens that it may use, in and out.", rich_help_panel=_BUDGET),
]
MaxCostOption = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="USD", help="Money that it may spend.", rich_help_panel=_BUDGET),
]
MaxTimeOption = Annotated[
    str | None,
    typer.Option(
        "--max-time", metavar="TIME", help="Time that it may work: seconds, 90m, 2h, 1d.", rich_help_panel=_BUDGET
    ),
]
PriceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="MODEL=IN,OUT[,CACHED]",
        help="A model's price, in USD per million tokens.",
        rich_help_panel=_BUDGET,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar=_FLAG, help="Only estimate calls, tokens, money and time.", rich_help_panel=_BUDGET
    ),
]
DataDirOption = Annotated[
    str | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="A dataset folder, as an argument would be.", rich_help_panel=_PUBLISHED
    ),
]
IsGptOption = Annotated[
    bool | None,
    typer.Option(
        "--is-gpt/--no-is-gpt", metavar=_FLAG, help="Chat roles, or one flat prompt.", rich_help_panel=_PUBLISHED
    ),
]
BaseModelFamilyOption = Annotated[
    str | None,
    typer.Option("--base-model-family", metavar="NAME", help="Accepted; not needed.", rich_help_panel=_PUBLISHED),
]
DisableTqdmOption = Annotated[
    bool, typer.Option("--disable-tqdm", metavar=_FLAG, help="No live panel.", rich_help_panel=_PUBLISHED)
]

MetricsCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--metrics-cache",
        metavar="FILE",
        help="Metrics selected before, in the published JSON form.",
        rich_help_panel=_SEARCH,
    ),
]
LevelOption = Annotated[
    int,
    typer.Option("--level", metavar="N", min=0, help="After which level to branch; 0: the initial prompt is scored."),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", metavar=_FLAG, help="Go on although settings, prompts or data changed.", rich_help_panel=_RUN
    ),
]
RetryFailedOption = Annotated[
    bool,
    typer.Option("--retry-failed", metavar=_FLAG, help="Ask again for what had no usable reply.", rich_help_panel=_RUN),
]
RunArgument = Annotated[str, typer.Argument(metavar="THREAD", help="The run's name; `drpo runs` lists them.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="provider:model, e.g. vllm:NAME or local:smollm2.")]
RolesOption = Annotated[
    list[str] | None, typer.Option("--role", metavar="ROLE", help="Only this role; may be given several times.")
]
NoSamplesOption = Annotated[
    bool, typer.Option("--no-samples", metavar=_FLAG, help="Only what the endpoint can do: no sample of each role.")
]
JsonOption = Annotated[bool, typer.Option("--json", metavar=_FLAG, help="Print JSON.")]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", metavar=_FLAG, help="Wait for further events until the run ends.")
]
RunsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="THREAD...", help="Runs; all finished ones if absent.")
]
SomeRunArgument = Annotated[str | None, typer.Argument(metavar="THREAD", help="The run's name; or give --all.")]
OlderThanOption = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only runs untouched for so long, e.g. 12h, 30d, 4w.")
]
KeepOption = Annotated[
    Literal["records", "result", "nothing"],
    typer.Option("--keep", metavar="WHAT", help="What stays: records, result or nothing."),
]
DryPruneOption = Annotated[bool, typer.Option("--dry-run", metavar=_FLAG, help="Say what would go; change nothing.")]
UnfinishedOption = Annotated[
    bool,
    typer.Option("--unfinished", metavar=_FLAG, help="With --keep nothing: also runs that could still be resumed."),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", metavar=_FLAG, help="Do not ask.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the files go, a folder for each run.")
]
AllRunsOption = Annotated[bool, typer.Option("--all", metavar=_FLAG, help="Every run of the checkpoint.")]
PlainFilesOption = Annotated[
    bool,
    typer.Option(
        "--plain-files",
        metavar=_FLAG,
        help="Write the run folder although the checkpoint is encrypted.",
        rich_help_panel=_RUN,
    ),
]
