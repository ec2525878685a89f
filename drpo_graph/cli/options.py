"""The options that several commands have, each declared once; ``option_groups`` tells how they are taken."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import typer

from drpo_graph.cli.completion import complete_thread
from drpo_graph.cli.option_groups import FLAG, OptionGroup, SettingGroup, option, parse_sampling
from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.display import DisplayKind
from drpo_graph.records import PlaceholderStyle
from drpo_graph.settings.layers import load_settings_file
from drpo_graph.settings.prices import parse_price
from drpo_graph.settings.settings import Compat, QueryPolicy

LogLevel = Literal["DEBUG", "INFO", "WARNING"]

RUN_NAMES = frozenset(
    {
        *("data_dir", "base_model_family", "base_model_download_dir", "cuda_visible_devices", "num_gpus"),
        *("disable_tqdm", "log_dir", "disable_log", "logging_level"),
    }
)
"""Names of the published code that a settings file may hold and that are no settings: they say how a run is done."""

MODELS = "Models"
RUN = "Run"

RunArgument = Annotated[
    str,
    typer.Argument(metavar="THREAD", help="The run's name; `drpo runs` lists them.", autocompletion=complete_thread),
]
QueriesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA...",
        help="Datasets: folder, JSONL, JSON, CSV or text file, '-' for stdin. Bundled set if absent.",
    ),
]
ThreadIdOption = Annotated[
    str | None,
    typer.Option("--thread-id", metavar="NAME", help="Name of the run; new by default.", rich_help_panel=RUN),
]
CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="PLACE",
        help="What keeps the runs: a SQLite file, or a database, postgresql://USER@HOST/NAME.",
        rich_help_panel=RUN,
    ),
]
DisplayOption = Annotated[
    DisplayKind,
    typer.Option("--display", metavar="KIND", help="What to show: rich, plain, jsonl or none.", rich_help_panel=RUN),
]
JsonOption = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON.")]


class Models(SettingGroup, panel=MODELS):
    """The models of the roles, and where they are served. What is for all roles comes before what is for one."""

    model: str | None = option(None, "MODEL", help="Model of all roles, provider:model.")
    base_model: str | None = option(None, "MODEL", help="Model to align.")
    metrics_model: str | None = option(None, "MODEL", help="Selects metrics.")
    critic_model: str | None = option(None, "MODEL", help="Scores responses.")
    optimizer_model: str | None = option(None, "MODEL", help="Writes prompts.")
    base_url: list[str] | None = option(
        None, "URL", help="OpenAI-compatible API of all roles, ending in /v1; once per server of the model."
    )
    api_key_env: str | None = option(None, "NAME", help="Environment variable with the key.")


class Serving(OptionGroup, panel=MODELS):
    """Whether the roles' model is served for the run."""

    serve: bool = option(False, FLAG, help="Start vLLM for the roles' vllm:NAME, and stop it after the run.")
    serve_options: str | None = option(None, "TEXT", help="What `drpo serve` would be given, in quotes.")


class Search(SettingGroup, panel="Search"):
    """What a search does."""

    initial_prompt: str | None = option(None, "TEXT", help="Prompt to start from; @FILE reads it from a file.")
    warm_start: str | None = option(
        None,
        "WHAT",
        help="Start from what was found: a file with a prompt, a former run, a model with a kept prompt.",
        is_setting=False,
    )
    depth: int | None = option(None, "N", help="Levels + 1: the root counts.")
    max_depth_increase: int | None = option(None, "N", help="Levels that easy levels may add.")
    beam_size: int | None = option(None, "N", help="Candidates kept per level.")
    n_actions: int | None = option(None, "N", help="Rewrites per candidate.")
    n_proposed: int | None = option(
        None, "N", help="Rewrites written per candidate: a reward model drops the worst before they are run."
    )
    optimizer_temperature: str | None = option(
        None, "X", help="The optimizer's; none sends none.", flag="--temperature", parser=parse_sampling
    )
    queries_per_level: int | None = option(None, "N", help="Queries per level.")
    query_policy: QueryPolicy | None = option(
        None, "KIND", help="stream: new queries each level; pool: a few used again."
    )
    pool_size: int | None = option(None, "N", help="Queries in the pool.")
    keep_parents: bool | None = option(
        None, FLAG, help="Whether parents compete with their rewrites.", flag="--keep-parents/--drop-parents"
    )
    num_queries: int | None = option(None, "N", help="Training queries to use.")
    seed: int | None = option(None, "N", help="Seed of every draw.")
    compat: Compat | None = option(None, "NAME", help="drpo: the published search, rule by rule.")
    validation: list[str] | None = option(None, "DATA", help="Held-out dataset for the final choice.", is_setting=False)
    templates: Path | None = option(None, "DIR", help="Folder whose prompt templates replace ours.")
    metrics_cache: Path | None = option(None, "FILE", help="Metrics selected before, in the published JSON form.")
    ret_icl: bool | None = option(
        None,
        FLAG,
        help="Whether responses are sampled with ICL examples like the query.",
        flag="--ret-icl/--no-ret-icl",
    )
    k: int | None = option(None, "N", help="ICL examples.")
    icl_examples: Path | None = option(None, "FILE", help="Own ICL examples, in the published JSON form.")
    embeddings: str | None = option(None, "MODEL", help="Finds them: openai:NAME, or the embedded one.", panel=MODELS)
    embeddings_base_url: str | None = option(None, "URL", help="OpenAI-compatible API of --embeddings.", panel=MODELS)
    reward: list[str] | None = option(
        None,
        "REWARD",
        help="Scores responses in the critic's place, several times: exact, contains, numeric, regex, json (by the "
        "dataset's answers), regex:PATTERN, schema:FILE, module:function.",
    )
    reward_weight: float | None = option(None, "X", help="Its share; the critic has the rest.")
    placeholders: PlaceholderStyle | None = option(
        None, "STYLE", help="What the prompt's are like: format {x}, mustache {{x}}, dollar $x, auto."
    )
    approve: bool | None = option(
        None,
        FLAG,
        help="Pause between levels until a person approves, edits or vetoes the beam.",
        panel="Options",
    )


class Sources(OptionGroup, panel=RUN):
    """Where settings come from besides their own options."""

    config: Path | None = option(None, "FILE", help="Settings, TOML or JSON; flags win over it.")
    overrides: list[str] | None = option(
        None, "NAME=VALUE", help="Any setting, e.g. critic.max_tokens=512; wins over flags.", flag="--set"
    )

    @cached_property
    def _whole_file(self) -> dict[str, object]:
        return load_settings_file(self.config) if self.config else {}

    @property
    def file(self) -> dict[str, object]:
        """The settings in the file, none without one. It is read once: it may be a pipe.

        Raises:
            SettingsError: it cannot be read or parsed.
        """
        return {name: value for name, value in self._whole_file.items() if _as_field(name) not in RUN_NAMES}

    @property
    def run_values(self) -> dict[str, object]:
        """What the file says of how a run is carried out, by name.

        Raises:
            SettingsError: it cannot be read or parsed.
        """
        named = ((_as_field(name), value) for name, value in self._whole_file.items())
        return {name: value for name, value in named if name in RUN_NAMES}


class Output(OptionGroup, panel=RUN):
    """Where a run is kept, written and shown."""

    checkpoint: CheckpointOption = DEFAULT_PLACE
    log_dir: Path | None = option(None, "DIR", help="Run folder; beside the file, or in drpo_runs, by default.")
    disable_log: bool = option(False, FLAG, help="Write no run folder.")
    plain_files: bool = option(False, FLAG, help="Write the run folder although the checkpoint is encrypted.")
    logging_level: LogLevel | None = option(
        None, "LEVEL", help="Of log.txt: DEBUG, INFO (the default) or WARNING.", ignores_case=True
    )
    display: DisplayOption = "rich"


class Pace(SettingGroup, panel=RUN):
    """How fast a run asks, and how long it waits."""

    max_concurrency: int | None = option(None, "N", help="Calls in flight per endpoint.")
    requests_per_second: float | None = option(None, "X", help="Rate limit per endpoint.")
    max_outage_s: float | None = option(
        None, "S", help="Wait for a lost endpoint; 0 stops at once.", flag="--max-outage"
    )


class Budget(SettingGroup, panel="Budget"):
    """What a run may spend."""

    max_calls: int | None = option(None, "N", help="Model calls that the run may make.")
    max_tokens: int | None = option(None, "N", help="Tokens that it may use, in and out.")
    max_cost: float | None = option(None, "USD", help="Money that it may spend.")
    max_time: str | None = option(None, "TIME", help="Time that it may work: seconds, 90m, 2h, 1d.")
    prices: list[str] | None = option(
        None, "MODEL=IN,OUT[,CACHED]", help="A model's price, in USD per million tokens.", flag="--price"
    )
    dry_run: bool = option(False, FLAG, help="Only estimate calls, tokens, money and time.", is_setting=False)

    def given(self) -> dict[str, object]:
        """Return the settings that the command line gives, by name.

        Raises:
            SettingsError: a price cannot be read.
        """
        values = super().given()
        if self.prices:
            values["prices"] = {model: price.model_dump() for model, price in map(parse_price, self.prices)}
        return values

    def find_priced(self) -> tuple[str, ...]:
        """Return the models that are given a price.

        Raises:
            SettingsError: a price cannot be read.
        """
        return tuple(parse_price(text)[0] for text in self.prices or ())


def _as_field(name: str) -> str:
    return name.replace("-", "_").lower()
