"""``drpo optimize`` and ``drpo resume``."""

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from drpo_graph.checkpoint import DEFAULT_CHECKPOINT, check_thread_id
from drpo_graph.cli import options as flags
from drpo_graph.dataset import load_bundled_queries, load_queries
from drpo_graph.display import DisplayKind, make_display
from drpo_graph.errors import DatasetError, DRPOError, SettingsError, UsageError
from drpo_graph.events import Event, RunStopped
from drpo_graph.export import ALGORITHM_FOLDER, EVENTS_FILE, LOG_FILE, PROMPT_FILE, RESULT_FILE
from drpo_graph.records import ROLES, Query, RunResult
from drpo_graph.runner import RunOptions, new_thread_id, optimize, resume, run_folder
from drpo_graph.settings import Settings, build_settings, load_settings_file, merge_settings


def optimize_command(
    queries: flags.QueriesArgument = None,
    model: flags.ModelOption = None,
    base_model: flags.BaseModelOption = None,
    metrics_model: flags.MetricsModelOption = None,
    critic_model: flags.CriticModelOption = None,
    optimizer_model: flags.OptimizerModelOption = None,
    base_url: flags.BaseUrlOption = None,
    api_key_env: flags.ApiKeyEnvOption = None,
    initial_prompt: flags.InitialPromptOption = None,
    depth: flags.DepthOption = None,
    max_depth_increase: flags.MaxDepthIncreaseOption = None,
    beam_size: flags.BeamSizeOption = None,
    n_actions: flags.NActionsOption = None,
    temperature: flags.TemperatureOption = None,
    queries_per_level: flags.QueriesPerLevelOption = None,
    query_policy: flags.QueryPolicyOption = None,
    pool_size: flags.PoolSizeOption = None,
    keep_parents: flags.KeepParentsOption = None,
    num_queries: flags.NumQueriesOption = None,
    seed: flags.SeedOption = None,
    compat: flags.CompatOption = None,
    validation: flags.ValidationOption = None,
    templates: flags.TemplatesOption = None,
    metrics_cache: flags.MetricsCacheOption = None,
    config: flags.ConfigOption = None,
    overrides: flags.OverridesOption = None,
    thread_id: flags.ThreadIdOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    log_dir: flags.LogDirOption = None,
    disable_log: flags.DisableLogOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
    max_concurrency: flags.MaxConcurrencyOption = None,
    requests_per_second: flags.RequestsPerSecondOption = None,
    data_dir: flags.DataDirOption = None,
    is_gpt: flags.IsGptOption = None,
    base_model_family: flags.BaseModelFamilyOption = None,
    disable_tqdm: flags.DisableTqdmOption = False,
) -> None:
    """Optimise a system prompt.

    Without datasets it trains on the bundled queries. The run is stored as it goes: whatever ends it, `drpo resume`
    continues it, and no finished model call is paid for twice.
    """
    given = dict(locals())
    settings = _read_settings(given)
    training = _read_datasets([*(queries or []), *([data_dir] if data_dir else [])])
    held_out = _read_datasets(validation) if validation else ()
    if base_model_family:
        typer.echo("note: --base-model-family is not needed: the server knows its model's chat template.", err=True)
    name = check_thread_id(thread_id or new_thread_id())
    options = RunOptions(
        checkpoint=checkpoint,
        log_dir=log_dir,
        writes_files=not disable_log,
        handles_signals=True,
        log_level=logging_level,
    )
    _carry_out(
        name,
        options,
        "plain" if disable_tqdm and display == "rich" else display,
        lambda shown: optimize(training, settings=settings, validation=held_out, thread_id=name, options=shown),
    )


def resume_command(
    thread_id: flags.RunArgument,
    queries: flags.QueriesArgument = None,
    config: flags.ConfigOption = None,
    overrides: flags.OverridesOption = None,
    force: flags.ForceOption = False,
    checkpoint: flags.CheckpointOption = DEFAULT_CHECKPOINT,
    log_dir: flags.LogDirOption = None,
    disable_log: flags.DisableLogOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
) -> None:
    """Continue a run from where it was: after Ctrl-C, a crash, a lost connection.

    Settings and queries are those it was started with. What only says where and how fast, such as
    --set critic.base_url=URL or --set max_concurrency=8, may change; anything else needs --force.
    """
    options = RunOptions(
        checkpoint=checkpoint,
        log_dir=log_dir,
        writes_files=not disable_log,
        handles_signals=True,
        log_level=logging_level,
    )
    changes = merge_settings(load_settings_file(config) if config else {}, _read_overrides(overrides))
    training = _read_datasets(queries) if queries else None
    _carry_out(
        thread_id,
        options,
        display,
        lambda shown: resume(thread_id, options=shown, changes=changes, queries=training, accepts_changes=force),
    )


_FLAGS_NAMED_LIKE_SETTINGS = (
    "depth",
    "max_depth_increase",
    "beam_size",
    "n_actions",
    "queries_per_level",
    "query_policy",
    "pool_size",
    "keep_parents",
    "num_queries",
    "seed",
    "compat",
    "templates",
    "metrics_cache",
    "max_concurrency",
    "requests_per_second",
    "base_model",
    "metrics_model",
    "critic_model",
    "optimizer_model",
)
_SETTING_BY_FLAG = {**{name: name for name in _FLAGS_NAMED_LIKE_SETTINGS}, "temperature": "optimizer_temperature"}


def _read_settings(given: Mapping[str, object]) -> Settings:
    """Return the settings: defaults, then the file, then flags for all roles, flags of their own, and --set."""
    config = given["config"]
    assert config is None or isinstance(config, Path)
    for_all = {"model": given["model"], "base_url": given["base_url"], "api_key_env": given["api_key_env"]}
    roles = {f"{role}_{name}": value for role in ROLES for name, value in for_all.items() if value is not None}
    own = {setting: given[flag] for flag, setting in _SETTING_BY_FLAG.items() if given[flag] is not None}
    if given["is_gpt"] is not None:
        own["base_prompt_format"] = "chat" if given["is_gpt"] else "flat"
    prompt = given["initial_prompt"]
    if isinstance(prompt, str):
        own["initial_prompt"] = _read_prompt(prompt)
    overrides = given["overrides"]
    assert overrides is None or isinstance(overrides, list)
    file = load_settings_file(config) if config else {}
    return build_settings(merge_settings(file, roles, own, _read_overrides(overrides)))


def _read_prompt(text: str) -> str:
    """Return a prompt given as text, or the content of the file that ``@FILE`` names."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Prompt file {text[1:]}: {reason}.") from error


def _read_overrides(overrides: Sequence[str] | None) -> dict[str, object]:
    values: dict[str, object] = {}
    for override in overrides or ():
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise SettingsError(f"--set {override}: expected NAME=VALUE, e.g. critic.max_tokens=512.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values = merge_settings(values, {name.replace(".", "_", 1): value})
    return values


def _read_datasets(sources: Sequence[str]) -> tuple[Query, ...]:
    """Return the queries of all datasets, or the bundled ones when there are none."""
    if not sources:
        return load_bundled_queries()
    queries = [query for source in sources for query in load_queries(source, stdin=sys.stdin)]
    repeated = {query.id for query in queries if sum(other.id == query.id for other in queries) > 1}
    if repeated:
        raise DatasetError(f"Two datasets share the query ids {', '.join(sorted(repeated)[:5])}: give them other ids.")
    return tuple(queries)


def _carry_out(
    thread_id: str,
    options: RunOptions,
    kind: DisplayKind,
    run: Callable[[RunOptions], Coroutine[None, None, RunResult]],
) -> None:
    """Run with a display, and mark an error that the display has shown already."""
    has_shown_stop = False

    def note_stop(event: Event) -> None:
        nonlocal has_shown_stop
        has_shown_stop = has_shown_stop or (isinstance(event, RunStopped) and kind in ("rich", "plain"))

    files, commands = _list_files(options, thread_id), _list_commands(options, thread_id)
    display = make_display(kind, stdout=sys.stdout, stderr=sys.stderr, files=files, commands=commands)
    display.start()
    try:
        asyncio.run(run(replace(options, sinks=(display.handle, note_stop))))
    except DRPOError as error:
        error.was_shown = has_shown_stop
        raise
    finally:
        display.stop()


def _list_files(options: RunOptions, thread_id: str) -> list[Path]:
    folder = run_folder(options, thread_id)
    names = (PROMPT_FILE, RESULT_FILE, f"{ALGORITHM_FOLDER}/output.json", EVENTS_FILE, LOG_FILE)
    return [folder / name for name in names] if folder is not None else []


def _list_commands(options: RunOptions, thread_id: str) -> list[str]:
    where = "" if options.checkpoint == DEFAULT_CHECKPOINT else f" --checkpoint {shlex.quote(str(options.checkpoint))}"
    return [
        f"drpo resume {thread_id}{where}",
        f"drpo show {thread_id}{where}",
        f"drpo events {thread_id}{where}",
    ]
