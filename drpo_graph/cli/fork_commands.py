"""``drpo fork``: branch a run with other settings."""

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_fork_changes, read_priced
from drpo_graph.cli.places import DEFAULT_PLACE, find_place_of
from drpo_graph.storage.names import check_thread_id


def fork_command(
    thread_id: flags.RunArgument,
    level: flags.LevelOption,
    new_id: flags.ThreadIdOption = None,
    model: flags.ModelOption = None,
    base_model: flags.BaseModelOption = None,
    metrics_model: flags.MetricsModelOption = None,
    critic_model: flags.CriticModelOption = None,
    optimizer_model: flags.OptimizerModelOption = None,
    base_url: flags.BaseUrlOption = None,
    api_key_env: flags.ApiKeyEnvOption = None,
    serve: flags.ServeOption = False,
    serve_options: flags.ServeOptionsOption = None,
    depth: flags.DepthOption = None,
    max_depth_increase: flags.MaxDepthIncreaseOption = None,
    beam_size: flags.BeamSizeOption = None,
    n_actions: flags.NActionsOption = None,
    temperature: flags.TemperatureOption = None,
    queries_per_level: flags.QueriesPerLevelOption = None,
    query_policy: flags.QueryPolicyOption = None,
    pool_size: flags.PoolSizeOption = None,
    keep_parents: flags.KeepParentsOption = None,
    seed: flags.SeedOption = None,
    templates: flags.TemplatesOption = None,
    metrics_cache: flags.MetricsCacheOption = None,
    reward: flags.RewardOption = None,
    reward_weight: flags.RewardWeightOption = None,
    config: flags.ConfigOption = None,
    overrides: flags.OverridesOption = None,
    max_concurrency: flags.MaxConcurrencyOption = None,
    requests_per_second: flags.RequestsPerSecondOption = None,
    max_outage: flags.MaxOutageOption = None,
    max_calls: flags.MaxCallsOption = None,
    max_tokens: flags.MaxTokensOption = None,
    max_cost: flags.MaxCostOption = None,
    max_time: flags.MaxTimeOption = None,
    prices: flags.PriceOption = None,
    checkpoint: flags.CheckpointOption = DEFAULT_PLACE,
    log_dir: flags.LogDirOption = None,
    disable_log: flags.DisableLogOption = False,
    plain_files: flags.PlainFilesOption = False,
    logging_level: flags.LogLevelOption = "INFO",
    display: flags.DisplayOption = "rich",
) -> None:
    """Branch a run with other settings from the state that it had after a level.

    The former run stays as it is. Its finished calls cost the fork nothing: with settings unchanged no call is made.
    Settings that are not given are the former run's; data and initial prompt cannot change.
    """
    given = dict(locals())
    storage = find_place_of(thread_id, checkpoint)
    changes, priced = read_fork_changes(given), read_priced(given)
    if new_id is not None:
        check_thread_id(new_id)
    from drpo_graph.cli import execution  # Loads LangGraph: wrong usage is told before that.

    options = execution.build_options(
        storage, log_dir, disable_log=disable_log, log_level=logging_level, plain_files=plain_files
    )
    serving = execution.build_serving(serve, serve_options, storage=storage, display=display)
    execution.branch(
        thread_id,
        new_id,
        level=level,
        changes=changes,
        priced=priced,
        options=options,
        display=display,
        serving=serving,
    )
