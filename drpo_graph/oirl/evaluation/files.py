"""An evaluation in files: tables as CSV, one page of Markdown, figures, and all of it as JSON."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.evaluation.choices import BATCH_PAIRS, NUM_ANCHORS
from drpo_graph.oirl.evaluation.labelled_calls import STRATEGIES
from drpo_graph.oirl.evaluation.results import BEST_SINGLE, Evaluation, SelectionRow
from drpo_graph.oirl.evaluation.statistics import FIT_NUMBERS, Interval
from drpo_graph.safety.private_files import make_private_folder, write_atomically

Table = tuple[Sequence[str], list[Sequence[str]]]
"""Heads and rows, as text."""

SET_ORDER: Final = ("training", "held-out", "all")


def check_folder(folder: Path) -> None:
    """Do nothing where a folder can be written to, or made.

    Raises:
        DemonstrationsError: it is a file, or its parent is.
    """
    first = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not first.is_dir():
        raise DemonstrationsError(f"{folder} cannot be written ({first} is a file). Name another.")


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write an evaluation's files and return their paths; figures are left out where matplotlib is missing.

    Raises:
        DemonstrationsError: the folder cannot be written.
    """
    contents: dict[str, bytes] = {"evaluation.json": evaluation.model_dump_json(indent=2).encode() + b"\n"}
    for name, (heads, rows) in build_tables(evaluation).items():
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
        contents[f"{name}.csv"] = buffer.getvalue().encode("utf-8", "backslashreplace")
    contents["report.md"] = render_report(evaluation).encode("utf-8", "backslashreplace")
    contents |= _draw(evaluation)
    try:
        make_private_folder(folder)
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise DemonstrationsError(f"{folder} cannot be written ({error.strerror or error}). Name another.") from error
    return [folder / name for name in contents]


def build_tables(evaluation: Evaluation) -> dict[str, Table]:
    """Return the tables by name, proportions in percent."""
    tables: dict[str, Table] = {"selection": _selection_table(evaluation), "fit": _fit_table(evaluation)}
    tables["oracle"] = (
        ("prompts", "oracle %", "best single %", "oracle without preferences %", "noise share %"),
        [
            (
                one.prompts,
                *(f"{100 * value:.1f}" for value in (one.oracle, one.best_single, one.expected, one.noise_share)),
            )
            for one in evaluation.oracles
        ],
    )
    tables["labelled_calls"] = (
        ("reward model", "chosen prompts bring %", *(f"calls for as much, {one}" for one in STRATEGIES)),
        [
            (
                one.name,
                f"{100 * one.value:.1f}",
                *(_calls(one.calls_by_strategy[way], one.most_calls) for way in STRATEGIES),
            )
            for one in evaluation.labelled_calls
        ],
    )
    tables["speed"] = (
        ("reward model", "training s", "microseconds for one pair", f"microseconds per pair, {BATCH_PAIRS:,} at once"),
        [(one.name, f"{one.train_s:.1f}", f"{one.pair_us:,.0f}", f"{one.batch_us:.2f}") for one in evaluation.speeds],
    )
    tables["calibration"] = (
        ("predicted %", "found %", "pairs"),
        [
            (f"{100 * one.predicted:.1f}", f"{100 * one.found:.1f}", str(one.num_pairs))
            for one in evaluation.calibration
        ],
    )
    if evaluation.subsets:
        tables["subsets"] = (
            ("number", "prompts", *(f"chosen among {one} %" for one in SET_ORDER), "best single %"),
            [
                (
                    str(len(one.prompts)),
                    "; ".join(one.prompts),
                    *(f"{100 * one.values[name]:.1f}" if name in one.values else "" for name in SET_ORDER),
                    f"{100 * one.best_single:.1f}",
                )
                for one in evaluation.subsets
            ],
        )
    return tables


def render_report(evaluation: Evaluation) -> str:
    """Return the page that tells what was found."""
    own = (
        "the table's own split, learning from a random 80% of its training queries in each round"
        if evaluation.has_own_split
        else "a new split by query text in each round"
    )
    lines = [
        "# Choosing prompts by query: evaluation",
        "",
        f"{evaluation.num_rows:,} demonstrations; {evaluation.num_queries:,} queries, of which "
        f"{evaluation.num_test_queries:,} were tested on; {evaluation.num_rounds} rounds, {own}.",
        f"Training prompts: {_list(evaluation.training_prompts)}. Held-out prompts: "
        f"{_list(evaluation.held_out_prompts) if evaluation.held_out_prompts else 'none'}.",
        "",
    ]
    if evaluation.leak:
        lines += [f"**Its own split leaks and was not used.** {evaluation.leak}", ""]
    lines += [f"- {note}" for note in evaluation.notes]
    titles = {
        "selection": "What the chosen prompts bring (mean outcome, 95% bootstrap interval over queries)",
        "fit": "How well outcomes are predicted (test queries)",
        "oracle": "The oracle, and what part of its lead is noise",
        "labelled_calls": "What a choice among unseen prompts is worth in labelled calls",
        "speed": "What it costs",
        "calibration": "Calibration",
        "subsets": "Every set of training prompts (first round)",
    }
    for name, (heads, rows) in build_tables(evaluation).items():
        if rows:
            lines += ["", f"## {titles[name]}", "", *_markdown(heads, rows)]
    lines += ["", "## How to read it", "", *_explain(evaluation)]
    return "\n".join(lines) + "\n"


def _selection_table(evaluation: Evaluation) -> Table:
    heads = ["choice", "among", "value %", "interval", "over best single", "interval", "sd over rounds"]
    has_compared = any(one.over_compared is not None for one in evaluation.selection)
    if has_compared:
        heads += [f"over {evaluation.compared_with}", "interval"]
    rows: list[Sequence[str]] = []
    for one in _order(evaluation.selection):
        row = [one.name, one.prompts, f"{100 * one.value.mean:.1f}", _bounds(one.value)]
        row += [f"{100 * one.over_single.mean:+.1f}", _bounds(one.over_single), f"{100 * one.spread_over_rounds:.2f}"]
        if has_compared:
            other = one.over_compared
            row += ["", ""] if other is None else [f"{100 * other.mean:+.1f}", _bounds(other)]
        rows.append(row)
    return heads, rows


def _fit_table(evaluation: Evaluation) -> Table:
    heads = ("reward model", "prompts", "accuracy", "precision", "recall", "F1", "AUC", "Brier", "calibration error")
    rows: list[Sequence[str]] = [
        (one.name, one.prompts, *(f"{getattr(one, name):.3f}" for name in FIT_NUMBERS)) for one in evaluation.fits
    ]
    return heads, rows


def _order(rows: Iterable[SelectionRow]) -> list[SelectionRow]:
    return sorted(rows, key=lambda one: SET_ORDER.index(one.prompts))


def _percents(*shares: float) -> list[str]:
    return [f"{100 * share:.1f}" for share in shares]


def _bounds(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _calls(number: int | None, most: int) -> str:
    return f"more than {most:,}" if number is None else f"{number:,}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *(line(row) for row in rows)]


def _explain(evaluation: Evaluation) -> list[str]:
    told = [
        f"- `{BEST_SINGLE}` is chosen on the training queries alone; differences to it are paired by query.",
        "- `best prompt in hindsight` and `oracle` know the test outcomes. The oracle takes the best of many single "
        "draws: where its lead is noise, no choice can have it.",
        "- `router (...)` chooses by query only where queries that it had not seen show a gain; else it abstains.",
        f"- `{NUM_ANCHORS} anchors`: so many test queries are labelled first for each held-out prompt, and not scored.",
        "- `crosswise` is the mean of models that each learned without a part of the queries, as the router uses it.",
    ]
    shares = "; ".join(f"{name} in {share:.0%}" for name, share in evaluation.open_share.items())
    return [*told, f"- Rounds in which a router chose by query: {shares}."] if shares else told


def _draw(evaluation: Evaluation) -> dict[str, bytes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    figures = {"selection.png": Figure(figsize=(9, 7), layout="constrained")}
    _draw_selection(figures["selection.png"], evaluation)
    if evaluation.calibration:
        figures["calibration.png"] = Figure(figsize=(4.5, 4.5), layout="constrained")
        axes = figures["calibration.png"].subplots()
        axes.plot(
            [one.predicted for one in evaluation.calibration], [one.found for one in evaluation.calibration], "o-"
        )
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.set(xlabel="predicted", ylabel="found", title="Calibration on unseen queries")
    return {name: _to_png(figure) for name, figure in figures.items()}


def _draw_selection(figure: Any, evaluation: Evaluation) -> None:
    sets = [name for name in SET_ORDER if any(one.prompts == name for one in evaluation.selection)]
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        rows = [one for one in evaluation.selection if one.prompts == name and not one.name.startswith("prompt ")]
        rows = [one for one in rows if one.name != "oracle"][::-1]
        # Where all outcomes are equal, rounding alone may put the mean beyond its interval.
        low = [100 * max(0.0, one.value.mean - one.value.low) for one in rows]
        high = [100 * max(0.0, one.value.high - one.value.mean) for one in rows]
        axes.errorbar([100 * one.value.mean for one in rows], range(len(rows)), xerr=[low, high], fmt="o", capsize=2)
        axes.set_yticks(range(len(rows)), [one.name for one in rows], fontsize=7)
        axes.set(title=f"among {name} prompts", xlabel="mean outcome, %")


def _to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
