"""``--dry-run``: what a run would need, without a call and without a trace."""

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_graph.display import DisplayKind
from drpo_graph.display.formatting import NONE, format_count, format_estimate
from drpo_graph.display.streams import quiet, write_lines
from drpo_graph.display.tables import make_table
from drpo_graph.prompts.library import load_prompts
from drpo_graph.records import ROLES, ICLExample, Query
from drpo_graph.search.estimate import Dataset, Estimate, estimate_run, find_shortage, tell_reasoning
from drpo_graph.search.levels import draw_queries, order_drawn
from drpo_graph.settings.limits import CAPS, tell_money
from drpo_graph.settings.settings import Settings

_MIN_WIDTH = 100


def print_estimate(
    settings: Settings, training: Sequence[Query], held_out: Sequence[Query], *, display: DisplayKind
) -> None:
    """Print what a search is expected to use, and the most that it may.

    Raises:
        TemplateError: the template folder cannot be used.
    """
    prompts = load_prompts(settings.templates)
    ordered = order_drawn(draw_queries(training, settings), settings)
    data = Dataset(ordered, held_out, _cached_texts(settings), _examples(settings))
    expected = estimate_run(settings, prompts, data, is_worst=False)
    worst = estimate_run(settings, prompts, data, is_worst=True)
    told = (
        f"levels {settings.num_levels}, at most {settings.num_levels + settings.max_depth_increase}; "
        f"beam {settings.beam_size} x {settings.n_actions}{_tell_proposed(settings)}; "
        f"training queries {len(data.training)}, {settings.queries_per_level} per level; "
        f"validation queries {len(data.validation)}",
        "The calls at most are a bound: easy levels add all that they may, levels that can be are run again, and every "
        "reply is asked for again and repaired. Failed requests are not counted.",
    )
    print_estimates(settings, expected, worst, told=told, display=display)


def print_estimates(
    settings: Settings, expected: Estimate, worst: Estimate, *, told: Sequence[str], display: DisplayKind
) -> None:
    """Print what a run is expected to use, the most that it may, and ``told``: what both rest on, in lines.

    As ``jsonl`` that is one JSON object with the two alone, as ``none`` nothing.
    """
    if display == "jsonl":
        write_lines(sys.stdout, json.dumps({"expected": _as_json(expected), "at_most": _as_json(worst)}))
    elif display != "none":
        _print_page(settings, expected, worst, told)


def _tell_proposed(settings: Settings) -> str:
    return f" of {settings.num_proposed} rewrites written" if settings.is_screened else ""


def _cached_texts(settings: Settings) -> frozenset[str]:
    if settings.metrics_cache is None:
        return frozenset()
    from drpo_graph.parts.defaults import load_metrics_cache  # Loads LangGraph.

    return frozenset(load_metrics_cache(settings.metrics_cache, known=load_prompts(settings.templates).metrics))


def _examples(settings: Settings) -> tuple[ICLExample, ...]:
    if not settings.ret_icl:
        return ()
    from drpo_graph.retrieval.retriever import read_icl_examples  # Loads LangChain.

    return read_icl_examples(settings)


def _as_json(estimate: Estimate) -> dict[str, object]:
    totals = {"calls": estimate.calls, "tokens": estimate.tokens, "cost_usd": estimate.cost_usd}
    return {**estimate.model_dump(mode="json"), **totals}


def _print_page(settings: Settings, expected: Estimate, worst: Estimate, told: Sequence[str]) -> None:
    console = Console(file=quiet(sys.stdout), highlight=False, markup=False, emoji=False)
    console.width = max(console.width, _MIN_WIDTH)
    console.print(_table(expected, worst), Text())
    lines = [
        *told,
        *filter(None, [tell_reasoning(settings, expected)]),
        "Tokens, money and time go by usual lengths, at most by the token limits; no token is taken as cached.",
        "Nothing was called, and nothing was created.",
    ]
    shortage = find_shortage(settings, {cap: expected.amount_of(cap) for cap in CAPS})
    for line in [*lines, *([f"warning: {shortage}"] if shortage else [])]:
        console.print(Text(line), soft_wrap=True)
    console.file.flush()


def _table(expected: Estimate, worst: Estimate) -> Table:
    table = make_table()
    table.add_column("estimate", style="dim", no_wrap=True)
    for heading in ("calls", "tokens in", "out", "money", "time", "calls at most", "tokens", "money"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role in ROLES:
        one, most = expected.by_role[role], worst.by_role[role]
        calls = _counts(one.calls, one.prompt_tokens, one.completion_tokens)
        bound = _counts(most.calls, most.prompt_tokens + most.completion_tokens)
        table.add_row(role, *calls, _money(one.cost_usd), "", *bound, _money(most.cost_usd))
    shares = expected.by_role.values()
    calls = _counts(
        expected.calls, sum(one.prompt_tokens for one in shares), sum(one.completion_tokens for one in shares)
    )
    bound = _counts(worst.calls, worst.tokens)
    time = format_estimate(expected.seconds)
    table.add_row("total", *calls, _money(expected.cost_usd), time, *bound, _money(worst.cost_usd), style="bold")
    return table


def _counts(num_calls: int, *tokens: int) -> list[str]:
    return [str(num_calls), *map(format_count, tokens)]


def _money(dollars: float | None) -> str:
    return NONE if dollars is None else tell_money(dollars)
