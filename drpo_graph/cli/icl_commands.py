"""``drpo icl``."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from drpo_graph.cli import options as flags
from drpo_graph.cli.estimate_page import print_estimates
from drpo_graph.cli.inputs import read_settings
from drpo_graph.cli.places import DEFAULT_PLACE
from drpo_graph.display import DisplayKind
from drpo_graph.errors import DatasetError
from drpo_graph.prompts.library import load_prompts
from drpo_graph.records import ICLExample
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import check_thread_id
from drpo_graph.storage.places import find_storage

ExamplesArgument = Annotated[
    Path | None,
    typer.Argument(metavar="EXAMPLES.json", help="JSON object of responses by query. Bundled set if absent."),
]
NumItersOption = Annotated[
    int, typer.Option("--num-iters", metavar="N", min=1, help="Rounds of rewriting per example, at most.")
]
NumSamplesOption = Annotated[int, typer.Option("--num-samples", metavar="N", min=1, help="Rewrites per round.")]
NumExamplesOption = Annotated[
    int | None, typer.Option("--num-examples", metavar="N", min=1, help="Only the first N examples.")
]


def icl_command(
    examples: ExamplesArgument = None,
    num_iters: NumItersOption = 5,
    num_samples: NumSamplesOption = 1,
    num_examples: NumExamplesOption = None,
    model: flags.ModelOption = None,
    metrics_model: flags.MetricsModelOption = None,
    critic_model: flags.CriticModelOption = None,
    optimizer_model: flags.OptimizerModelOption = None,
    base_url: flags.BaseUrlOption = None,
    api_key_env: flags.ApiKeyEnvOption = None,
    temperature: flags.TemperatureOption = None,
    seed: flags.SeedOption = None,
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
) -> None:
    """Optimise ICL examples: rewrite their responses from critiques, and keep the best-scored ones.

    The run is stored as it goes: whatever ends it, `drpo resume` continues it, and no finished model call is paid for
    twice. The examples are written in the published form to out_<examples>_<iterations>.json in the run's folder.
    """
    # What concerns the search alone has no flag here.
    given: dict[str, object] = defaultdict(lambda: None, locals())
    storage = find_storage(checkpoint)
    settings = read_settings(given)
    from drpo_graph.retrieval import bundled_icl_examples, load_icl_examples  # Loads LangChain's vector store.

    chosen = _choose(bundled_icl_examples() if examples is None else load_icl_examples(examples), num_examples)
    if thread_id is not None:
        check_thread_id(thread_id)
    if dry_run:
        _print_estimate(settings, chosen, num_iters=num_iters, num_samples=num_samples, display=display)
        return
    from drpo_graph.cli import execution, icl_execution  # Loads LangGraph: wrong usage is told before that.

    options = execution.build_options(
        storage, log_dir, disable_log=disable_log, log_level=logging_level, plain_files=plain_files
    )
    run = icl_execution.NewICLRun(settings=settings, examples=chosen, num_iters=num_iters, num_samples=num_samples)
    icl_execution.start(run, thread_id, options=options, display=display)


def _print_estimate(
    settings: Settings, examples: Sequence[ICLExample], *, num_iters: int, num_samples: int, display: DisplayKind
) -> None:
    from drpo_graph.icl.estimate import estimate_icl  # Loads LangGraph, with its package.

    prompts = load_prompts(settings.templates)
    expected, worst = (
        estimate_icl(examples, settings, prompts, num_iters=num_iters, num_samples=num_samples, is_worst=is_worst)
        for is_worst in (False, True)
    )
    told = (
        f"examples {len(examples)}; {num_iters} iterations of {num_samples}",
        "The calls at most are a bound: no score is perfect, and every reply is asked for again and repaired. Failed "
        "requests are not counted.",
    )
    print_estimates(settings, expected, worst, told=told, display=display)


def _choose(examples: tuple[ICLExample, ...], num_examples: int | None) -> tuple[ICLExample, ...]:
    if num_examples is not None and num_examples > len(examples):
        raise DatasetError(f"--num-examples {num_examples}: there are only {len(examples)} ICL examples.")
    return examples[:num_examples]
