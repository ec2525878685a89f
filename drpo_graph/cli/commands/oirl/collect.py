"""``drpo oirl collect``: try prompts on queries, and keep what became of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from drpo_graph.cli import options as flags
from drpo_graph.cli.demonstrations import check_is_no_input
from drpo_graph.cli.inputs import check_budget, read_answered, read_settings
from drpo_graph.cli.option_groups import Only, SettingGroup, Without, option, parse_sampling, takes_options
from drpo_graph.cli.pages.estimate import print_estimates
from drpo_graph.cli.published_options import fill_from_file, note_unused
from drpo_graph.data.references import load_bundled_problems
from drpo_graph.data.rows import AnsweredQuery
from drpo_graph.display import DisplayKind
from drpo_graph.errors import DatasetError
from drpo_graph.prompts.library import load_prompts
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import check_thread_id, new_thread_id
from drpo_graph.storage.places import find_storage

if TYPE_CHECKING:
    from drpo_graph.oirl.collection.inputs import CollectionRunInput

_REPLY_TOKENS = 512
"""A default for the reply's length, below a search's: an answer with its reasoning, and small models ramble."""


class _Sampling(SettingGroup, panel=flags.MODELS):
    """How the model that answers is sampled."""

    temperature: str | None = option(
        None, "X", help="Of the model that answers; 0 by default.", is_setting=False, parser=parse_sampling
    )
    top_p: str | None = option(None, "X", help="The same; 1 by default.", is_setting=False, parser=parse_sampling)
    max_reply_tokens: int | None = option(
        None, "N", help=f"Longest reply, in tokens; {_REPLY_TOKENS} by default.", is_setting=False
    )

    def given(self) -> dict[str, object]:
        """Return the settings that the command line gives, by name."""
        named = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_reply_tokens}
        base = {name: value for name, value in named.items() if value is not None}
        return {"base": base} if base else {}


@takes_options
def collect_command(
    *,
    queries: flags.QueriesArgument = None,
    prompts: Path | None = option(
        None, "FILE", help="JSON lines, JSON list or text of prompts. Six bundled reasoning prompts if absent."
    ),
    checker: str = option(
        "numeric",
        "SPEC",
        help="What judges: numeric, exact, contains, regex, regex:PATTERN, json, schema:FILE, critic, or "
        "module:function of your own.",
    ),
    trials: int = option(1, "N", help="Draws of each pair of a query and a prompt.", at_least=1),
    placement: Literal["system", "after"] = option(
        "system", "WHERE", help="Where the prompt stands: system, or after the question."
    ),
    num_queries: int | None = option(None, "N", help="Only the first N queries.", at_least=1),
    test_share: float = option(0.0, "X", help="Share of the queries to hold out for tests, 0 to 1.", at_least=0),
    output: Path | None = option(
        None, "FILE", help="Demonstrations, .jsonl or .parquet; demonstrations.jsonl in the run folder by default."
    ),
    models: Annotated[flags.Models, Without("optimizer_model")],
    sampling: _Sampling,
    # What concerns the search alone has no flag here.
    search: Annotated[flags.Search, Only("seed")],
    sources: flags.Sources,
    thread_id: flags.ThreadIdOption = None,
    place: flags.Output,
    pace: flags.Pace,
    budget: flags.Budget,
) -> None:
    """Try every prompt on every query, judge the answers, and keep the outcomes as demonstrations.

    Without datasets it asks the bundled word problems. A dataset gives a query's right answer in a column answer,
    reference, target, expected_output or label. The run is stored as it goes: whatever ends it, `drpo resume` continues
    it, and no finished model call is paid for twice.
    """
    storage = find_storage(place.checkpoint)
    place = fill_from_file(sources, place)
    note_unused(sources, place)
    defaults = {"base": {"max_tokens": _REPLY_TOKENS}}
    settings = read_settings(sources, models, sampling, search, pace, budget, defaults=defaults)
    check_budget(settings, budget.find_priced())
    answered = _choose(read_answered(queries) if queries else load_bundled_problems(), num_queries)
    if output is not None:
        check_is_no_input(output, [*(queries or ()), *([prompts] if prompts is not None else ())])
    name = check_thread_id(new_thread_id() if thread_id is None else thread_id)
    # Loads LangGraph.
    from drpo_graph.oirl.collection import TrialOptions, collect_demonstrations, load_tried_prompts
    from drpo_graph.oirl.collection.runner import make_input
    from drpo_graph.parts.checkers import load_checker

    tried, judge = load_tried_prompts(prompts), load_checker(checker)
    asked = TrialOptions(num_trials=trials, placement=placement, test_share=test_share, output=output)
    if budget.dry_run:
        given = make_input(answered, tried, settings=settings, checker=judge, trials=asked)
        _print_estimate(settings, given, display=place.display)
        return
    from drpo_graph.cli import execution

    begin = partial(
        collect_demonstrations, answered, tried, settings=settings, checker=judge, thread_id=name, trials=asked
    )
    frame = replace(execution.build_frame(storage, place), checker=judge.spec if judge.is_own else None)
    execution.start(name, begin, settings=settings, frame=frame)


def _choose(answered: tuple[AnsweredQuery, ...], num_queries: int | None) -> tuple[AnsweredQuery, ...]:
    if num_queries is not None and num_queries > len(answered):
        raise DatasetError(f"--num-queries {num_queries}: there are only {len(answered)} queries.")
    return answered[:num_queries]


def _print_estimate(settings: Settings, given: "CollectionRunInput", *, display: DisplayKind) -> None:
    from drpo_graph.oirl.collection.estimate import estimate_collection  # Loads LangGraph, with its package.

    prompts = load_prompts(settings.templates)
    expected, worst = (estimate_collection(given, settings, prompts, is_worst=is_worst) for is_worst in (False, True))
    told = (
        f"queries {len(given.questions)}; prompts {len(given.prompts)}; draws of each pair {given.num_trials}; "
        f"checker {given.checker}",
        "The calls at most are a bound: every reply is asked for again and repaired. Failed requests are not counted.",
    )
    print_estimates(settings, expected, worst, told=told, display=display)
