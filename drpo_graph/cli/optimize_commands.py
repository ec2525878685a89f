"""``drpo optimize`` and ``drpo resume``."""

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.estimate_page import print_estimate
from drpo_graph.cli.inputs import (
    check_budget,
    check_held_out,
    read_changes,
    read_datasets,
    read_priced,
    read_settings,
)
from drpo_graph.cli.places import DEFAULT_PLACE, find_place_of
from drpo_graph.cli.review_options import PauseOption
from drpo_graph.cli.warm_starts import read_warm_start
from drpo_graph.data.order import order_queries
from drpo_graph.parts.rewrite_guards import check_fillable
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import find_storage


def optimize_command(
    queries: flags.QueriesArgument = None,
    model: flags.ModelOption = None,
    base_model: flags.BaseModelOption = None,
    metrics_model: flags.MetricsModelOption = None,
    critic_model: flags.CriticModelOption = None,
    optimizer_model: flags.OptimizerModelOption = None,
    base_url: flags.BaseUrlOption = None,
    api_key_env: flags.ApiKeyEnvOption = None,
    serve: flags.ServeOption = False,
    serve_options: flags.ServeOptionsOption = None,
    initial_prompt: flags.InitialPromptOption = None,
    warm_start: flags.WarmStartOption = None,
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
    ret_icl: flags.RetIclOption = None,
    k: flags.KOption = None,
    icl_examples: flags.IclExamplesOption = None,
    embeddings: flags.EmbeddingsOption = None,
    embeddings_base_url: flags.EmbeddingsBaseUrlOption = None,
    reward: flags.RewardOption = None,
    reward_weight: flags.RewardWeightOption = None,
    placeholders: flags.PlaceholdersOption = None,
    approve: PauseOption = None,
    config: flags.ConfigOption = None,
    overrides: flags.OverridesOption = None,
    thread_id: flags.ThreadIdOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    log_dir: flags.LogDirOption = None,
    disable_log: flags.DisableLogOption = False,
    plain_files: flags.PlainFilesOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
    max_concurrency: flags.MaxConcurrencyOption = None,
    requests_per_second: flags.RequestsPerSecondOption = None,
    max_outage: flags.MaxOutageOption = None,
    max_calls: flags.MaxCallsOption = None,
    max_tokens: flags.MaxTokensOption = None,
    max_cost: flags.MaxCostOption = None,
    max_time: flags.MaxTimeOption = None,
    prices: flags.PriceOption = None,
    dry_run: flags.DryRunOption = False,
    data_dir: flags.DataDirOption = None,
    is_gpt: flags.IsGptOption = None,
    base_model_family: flags.BaseModelFamilyOption = None,
    disable_tqdm: flags.DisableTqdmOption = False,
) -> None:
    """Optimise a system prompt.

    Without datasets it trains on the bundled queries. The run is stored as it goes: whatever ends it, `drpo resume`
    continues it, and no finished model call is paid for twice.

    The flags of the published code are accepted: --base-model-name, --metrics-model-name, --eval-model-name,
    --optimize-model-name, --initial-system-prompt, --num-training-examples, --metrics-cache-path.
    """
    given = dict(locals())
    storage = find_storage(checkpoint)
    settings = read_settings(given)
    begun = read_warm_start(warm_start, storage)
    check_budget(settings, read_priced(given))
    training = read_datasets([*(queries or []), *([data_dir] if data_dir else [])])
    held_out = read_datasets(validation) if validation else ()
    check_held_out(training, held_out)
    # The run draws them itself; here it shows in time whether there are enough.
    order_queries(training, seed=settings.seed, num_queries=settings.num_queries)
    check_fillable(settings, settings.initial_prompt, [*training, *held_out])
    if base_model_family:
        typer.echo("note: --base-model-family is not needed: the server knows its model's chat template.", err=True)
    if thread_id is not None:
        check_thread_id(thread_id)
    if dry_run:
        expected = settings.model_copy(update={"initial_prompt": begun.system_prompt}) if begun else settings
        print_estimate(expected, training, held_out, display=display)
        return
    from drpo_graph.cli import execution  # Loads LangGraph: wrong usage is told before that.

    options = execution.build_options(
        storage, log_dir, disable_log=disable_log, log_level=logging_level, plain_files=plain_files
    )
    kind = "plain" if disable_tqdm and display == "rich" else display
    run = execution.NewRun(settings=settings, training=training, held_out=held_out, warm_start=begun)
    serving = execution.build_serving(serve, serve_options, storage=storage, display=kind)
    execution.start(run, thread_id, options=options, display=kind, serving=serving)


def resume_command(
    thread_id: flags.RunArgument,
    queries: flags.QueriesArgument = None,
    config: flags.ConfigOption = None,
    overrides: flags.OverridesOption = None,
    max_outage: flags.MaxOutageOption = None,
    max_calls: flags.MaxCallsOption = None,
    max_tokens: flags.MaxTokensOption = None,
    max_cost: flags.MaxCostOption = None,
    max_time: flags.MaxTimeOption = None,
    prices: flags.PriceOption = None,
    reward: flags.RewardOption = None,
    force: flags.ForceOption = False,
    retry_failed: flags.RetryFailedOption = False,
    serve: flags.ServeOption = False,
    serve_options: flags.ServeOptionsOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    log_dir: flags.LogDirOption = None,
    disable_log: flags.DisableLogOption = False,
    plain_files: flags.PlainFilesOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
) -> None:
    """Continue a run from where it was: after Ctrl-C, a crash, a lost connection.

    Settings and queries are those it was started with. What only says where and how fast, such as
    --set critic.base_url=URL or --set max_concurrency=8, and the budget may change; anything else needs --force.
    """
    given = dict(locals())
    storage = find_place_of(thread_id, checkpoint)
    changes, priced = read_changes(given), read_priced(given)
    training = read_datasets(queries) if queries else None
    from drpo_graph.cli import execution  # Loads LangGraph: wrong usage is told before that.

    options = execution.build_options(
        storage, log_dir, disable_log=disable_log, log_level=logging_level, plain_files=plain_files
    )
    run = execution.ResumedRun(
        changes=changes, training=training, accepts_changes=force, priced=priced, retries_failed=retry_failed
    )
    serving = execution.build_serving(serve, serve_options, storage=storage, display=display)
    execution.go_on(run, thread_id, options=options, display=display, serving=serving)
