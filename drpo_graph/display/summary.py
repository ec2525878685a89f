"""What is left on the screen when a run has ended: the result with its evidence, its cost, and how to go on."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from drpo_graph.display.collection import print_collection
from drpo_graph.display.formatting import (
    format_duration,
    format_gain,
    format_kinds,
    format_reward,
)
from drpo_graph.display.tables import LABEL_WIDTH, cost_table, make_table
from drpo_graph.events.schema import CollectionFinished, ICLFinished, RunFinished, RunStopped
from drpo_graph.evidence import NOT_COMPARED, find_evidence
from drpo_graph.records import MIN_QUERIES, Evidence, ICLResult, PairedComparison, RunResult
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.terminal import inert, inert_block

MAX_PROMPT_CHARS = 6000
"""Longest prompt shown in full; the files hold the rest."""

RESULT_FILE = "result.json"
_MAX_LINE, _MAX_ID = 400, 24
_EMBEDDED = "local:smollm2"
RESUME_COMMAND = "drpo resume "
"""With what the command begins that resumes a run."""


_TITLES: Final[Mapping[Evidence, str]] = {
    "initial_prompt": "initial prompt kept",
    "held_out_queries": "best prompt",
    "same_queries": "best prompt",
    "not_compared": "prompt found, not compared with the initial one",
}


def render_summary(
    result: RunResult,
    *,
    elapsed_s: float | None,
    models: Collection[str] = (),
    files: Sequence[Path] = (),
    commands: Sequence[str] = (),
) -> RenderableType:
    """Return the closing summary of a run by these models.

    Print it with ``crop=False`` (as :func:`print_end` does): paths and commands stay whole lines, whatever the
    width, so that they can be copied.
    """
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", width=LABEL_WIDTH, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("reward", _reward_text(result))
    facts.add_row("validation", _validation_text(result))
    facts.add_row("evidence", _evidence_text(result, models))
    facts.add_row("search", _search_text(result, elapsed_s=elapsed_s))
    if result.failures_by_kind:
        facts.add_row("failures", Text(format_kinds(result.failures_by_kind)))
    if result.unusable_by_kind:
        facts.add_row("bad replies", Text(format_kinds(result.unusable_by_kind)))
    parts: list[RenderableType] = [_prompt_panel(result), Text(), facts, Text(), cost_table(result)]
    parts.extend(_listing("files", [str(path) for path in files]))
    parts.extend(_listing("next", [tell_command(one) for one in commands]))
    return Group(*parts)


def print_end(
    console: Console,
    event: RunFinished | ICLFinished | CollectionFinished | RunStopped,
    *,
    elapsed_s: float,
    files: Sequence[Path],
    commands: Sequence[str],
    models: Collection[str] = (),
) -> None:
    """Print what a run came to, or why it stopped; of the commands, those that apply."""
    match event:
        case RunFinished():
            further = [command for command in commands if not command.startswith(RESUME_COMMAND)]
            page = render_summary(event.result, elapsed_s=elapsed_s, models=models, files=files, commands=further)
            console.print(page, crop=False)
        case ICLFinished():
            print_examples(console, event.result)
            for line in list_after_examples(files, commands, event.result):
                console.print(line, soft_wrap=True)
        case CollectionFinished():
            print_collection(console, event, files)
        case RunStopped():
            _print_stop(console, event, commands=commands)


def _print_stop(console: Console, event: RunStopped, *, commands: Sequence[str]) -> None:
    style = "bold red" if event.reason == "failed" else "yellow"
    line = Text.assemble((f"{event.reason}: ", style), inert(event.message, max_chars=_MAX_LINE))
    console.print(line, crop=False, no_wrap=True, overflow="ignore")
    if event.is_resumable:
        resuming = (one.removeprefix(RESUME_COMMAND) for one in commands if one.startswith(RESUME_COMMAND))
        run = next(resuming, shlex.quote(inert(event.run_id, max_chars=_MAX_LINE)))
        verb = "review" if event.reason == "waiting" else "resume"
        command = tell_command(f"drpo {verb} {run} {event.resume_flags}".rstrip())
        line = Text.assemble((f"{verb} with: ", "dim"), (inert(command, max_chars=2000), "bold"))
        console.print(line, crop=False, no_wrap=True, overflow="ignore")


def print_examples(console: Console, result: ICLResult) -> None:
    """Print what became of every ICL example."""
    table = make_table("ICL examples")
    for heading in ("example", "reward before", "after", "iterations"):
        table.add_column(heading, no_wrap=True)
    # Rich narrows columns that may wrap first: the query alone gives way.
    table.add_column("query", ratio=1)
    for one in result.examples:
        cells = (one.id, _tell_reward(one.initial_reward), _tell_reward(one.reward), str(one.iterations))
        query = Text(inert(one.query, max_chars=_MAX_LINE), no_wrap=True, overflow="ellipsis")
        table.add_row(*(Text(inert(cell, max_chars=_MAX_ID)) for cell in cells), query)
    console.print(table)
    calls = sum(usage.calls for usage in result.usage_by_role.values())
    counts = f"unscored {result.num_unscored}, calls {calls}"
    console.print(Text(f"mean reward {format_gain(result.examples)}, {counts}"))
    console.print(cost_table(result))


def list_after_examples(files: Sequence[Path], commands: Sequence[str], result: ICLResult) -> list[str]:
    """Return where the examples were written, given a search's files in the same place, and what to do next."""
    folders = [one.parent for one in files if one.name == RESULT_FILE]
    written = [folder / name for folder in folders for name in (result.published_name, RESULT_FILE)]
    further = [one for one in commands if not one.startswith(RESUME_COMMAND)]
    return [*map(str, written), *(f"next: {tell_command(one)}" for one in further)]


def _prompt_panel(result: RunResult) -> RenderableType:
    prompt = Text(inert_block(result.system_prompt, max_chars=MAX_PROMPT_CHARS))
    hidden = len(result.system_prompt) - MAX_PROMPT_CHARS
    if hidden > 0:
        prompt.append(f"\n… {hidden} more characters in the files below", style="dim")
    title = _TITLES.get(find_evidence(result), "prompt found")
    if result.status != "done":
        title = f"{title} so far (run {result.status})"
    heading = Text.assemble((title, "bold green"), (f"  {inert(result.candidate_id, max_chars=40)}", "dim"))
    subtitle = Text(inert(result.thread_id, max_chars=60), style="dim")
    # No side borders: the prompt can be copied from the terminal as it is.
    return Panel(
        prompt,
        title=heading,
        subtitle=subtitle,
        title_align="left",
        subtitle_align="right",
        box=box.HORIZONTALS,
        border_style="green",
        padding=(0, 0),
    )


def _reward_text(result: RunResult) -> Text:
    reward, same = result.reward, result.initial_reward_same_queries
    text = Text.assemble((_tell_reward(reward), "bold"))
    if len(result.trace) <= 1:
        return text.append("  the initial prompt's own, on the root's queries: no rewrite was chosen")
    if same is not None and reward is not None:
        gain = reward - same
        text.append(f"  initial prompt {same:.2f} on the same queries  ")
        return text.append(f"{gain:+.2f}", style="green" if gain > 0 else "")
    text.append(f" on the queries of its level, {NOT_COMPARED}", style="" if result.validation else "yellow")
    return text.append(f"; that one had {format_reward(result.initial_reward)} on the root's queries", style="dim")


def _tell_reward(reward: float | None) -> str:
    return "unscored" if reward is None else format_reward(reward)


def _validation_text(result: RunResult) -> Text:
    validation = result.validation
    if validation is None:
        return Text("none: without held-out queries a gain may be chance", style="dim")
    chosen = next((one for one in validation.comparisons if one.candidate_id == validation.selected_id), None)
    contender = chosen or next(iter(validation.comparisons), None)
    text = Text()
    if validation.is_significant:
        text.append("significant improvement", style="bold green")
    else:
        text.append("no significant improvement over the initial prompt", style="bold yellow")
    if contender is None or contender.difference is None:
        return text
    text.append(f"\n{contender.difference:+.2f}", style="bold")
    if contender.interval_low is not None and contender.interval_high is not None:
        text.append(f"  95% interval [{contender.interval_low:+.2f}, {contender.interval_high:+.2f}]")
    text.append(_validation_details(contender, selected_id=validation.selected_id))
    if not validation.is_significant and (advice := _advise(contender)):
        text.append(f"\n{advice}", style="yellow")
    return text


def _advise(contender: PairedComparison) -> str:
    """Return how many queries would say more, where that is known."""
    if contender.num_queries < MIN_QUERIES:
        return f"too few to say anything: hold out at least {MIN_QUERIES}, better 40"
    if contender.needed_queries is None:
        return ""
    return f"about {contender.needed_queries:,} held-out queries would show a difference like this one"


def _evidence_text(result: RunResult, models: Collection[str]) -> Text:
    """Return what the result shows, and what it does not."""
    if any(one.startswith(_EMBEDDED) for one in models):
        told = "that the search runs on this machine: the embedded model is too small for its scores to mean more"
        return Text(told, style="yellow")
    validation, advice = result.validation, "; hold queries out with --validation to show a gain"
    match find_evidence(result):
        case "initial_prompt":
            where = "held-out" if validation else "the same"
            return Text(f"no rewrite was shown to be better on {where} queries, and a tie replaces nothing")
        case "held_out_queries":
            is_significant = validation is not None and validation.is_significant
            within = "by more than chance" if is_significant else "by no more than chance may do"
            return Text(f"better than the initial prompt on held-out queries, {within}")
        case "same_queries":
            return Text(f"better than the initial prompt on the few queries that it was chosen by{advice}")
        case "not_better":
            told = f"none that it is better: the initial prompt scored no lower on the same queries{advice}"
        case "not_compared":
            told = f"none that it is better: {NOT_COMPARED}{advice}"
    return Text(told, style="yellow")


def _validation_details(contender: PairedComparison, *, selected_id: str) -> str:
    num_queries = contender.num_queries
    where = f" on {num_queries} held-out {'query' if num_queries == 1 else 'queries'}"
    if contender.candidate_id == selected_id:
        return where
    return f"{where} (best contender {inert(contender.candidate_id, max_chars=40)}; initial prompt kept)"


def _search_text(result: RunResult, *, elapsed_s: float | None) -> Text:
    levels = f"{result.depth} {'level' if result.depth == 1 else 'levels'}"
    path = " > ".join(inert(candidate_id, max_chars=_MAX_ID) for candidate_id in result.trace[-12:])
    duration = "" if elapsed_s is None else f" in {format_duration(elapsed_s)}"
    text = Text(f"{levels}{duration}")
    if len(result.trace) > 12:
        path = f"… {path}"
    return text.append(f"  path {path}", style="dim")


def _listing(label: str, lines: Sequence[str]) -> list[RenderableType]:
    shown: list[RenderableType] = [Text()] if lines else []
    for i, line in enumerate(lines):
        head = f"{'' if i else label:{LABEL_WIDTH + 2}}"
        shown.append(Text.assemble((head, "dim"), inert(line, max_chars=2000), no_wrap=True, overflow="ignore"))
    return shown
