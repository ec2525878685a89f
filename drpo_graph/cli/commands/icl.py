"""``drpo icl``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from drpo_graph.cli import options as flags
from drpo_graph.cli.inputs import read_settings
from drpo_graph.cli.option_groups import Only, Without, argument, option, takes_options
from drpo_graph.cli.pages.estimate import print_estimates
from drpo_graph.cli.published_options import fill_from_file, note_unused
from drpo_graph.display import DisplayKind
from drpo_graph.errors import DatasetError
from drpo_graph.prompts.library import load_prompts
from drpo_graph.records import ICLExample
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage


@takes_options
def icl_command(
    *,
    examples: Path | None = argument(
        None, "EXAMPLES.json", help="JSON object of responses by query, or rows with both. Bundled set if absent."
    ),
    num_iters: int = option(5, "N", help="Rounds of rewriting per example, at most.", at_least=1),
    num_samples: int = option(1, "N", help="Rewrites per round.", at_least=1),
    num_examples: int | None = option(None, "N", help="Only the first N examples.", at_least=1),
    models: Annotated[flags.Models, Without("base_model")],
    serving: flags.Serving,
    # What concerns the search alone has no flag here.
    search: Annotated[flags.Search, Only("optimizer_temperature", "seed")],
    sources: flags.Sources,
    thread_id: flags.ThreadIdOption = None,
    output: flags.Output,
    pace: flags.Pace,
    budget: flags.Budget,
) -> None:
    """Optimise ICL examples: rewrite their responses from critiques, and keep the best-scored ones.

    The run is stored as it goes: whatever ends it, `drpo resume` continues it, and no finished model call is paid for
    twice. The examples are written in the published form to out_<examples>_<iterations>.json in the run's folder.
    """
    storage = find_storage(output.checkpoint)
    output = fill_from_file(sources, output)
    note_unused(sources, output)
    settings = read_settings(sources, models, search, pace, budget)
    from drpo_graph.retrieval import bundled_icl_examples, load_icl_examples  # Loads LangChain's vector store.

    chosen = bundled_icl_examples() if examples is None else load_icl_examples(examples)
    if num_examples is not None and num_examples > len(chosen):
        raise DatasetError(f"--num-examples {num_examples}: there are only {len(chosen)} ICL examples.")
    chosen = chosen[:num_examples]
    name = check_thread_id(new_thread_id() if thread_id is None else thread_id)
    if budget.dry_run:
        _print_estimate(settings, chosen, num_iters=num_iters, num_samples=num_samples, display=output.display)
        return
    # Loads LangGraph: wrong usage is told before that.
    from drpo_graph.cli import execution
    from drpo_graph.icl import optimize_icl

    frame = execution.build_frame(storage, output, serving=serving, kind="icl")
    begin = partial(
        optimize_icl, chosen, settings=settings, num_iters=num_iters, num_samples=num_samples, thread_id=name
    )
    execution.start(name, begin, settings=settings, frame=frame)


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
