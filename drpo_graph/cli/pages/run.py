"""What ``drpo show`` prints: a run's levels, the path to its best prompt, its result or how far it is."""

import json
import shlex
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_graph.display.collection import print_outcomes
from drpo_graph.display.formatting import format_duration, format_models, format_reward
from drpo_graph.display.summary import print_examples, render_summary
from drpo_graph.display.tables import make_table
from drpo_graph.display.view import describe_decision
from drpo_graph.records import ROLES, Candidate
from drpo_graph.runs.reading import StoredRun, describe_start
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.terminal import inert, inert_block
from drpo_graph.settings.layers import list_unusual
from drpo_graph.storage.run_list import DEED_BY_KIND

_SHAPE = ("depth", "beam_size", "n_actions", "queries_per_level", "seed")
"""Settings that the heading always tells of a search."""
_MAX_LINE = 400
_MAX_PROMPT = 6000
_MAX_ID = 24
_VERB_BY_STATUS = {"running": ("watch it", "events"), "waiting": ("review", "review")}


def print_run(run: StoredRun, stdout: TextIO, *, place: str) -> None:
    """Print a run; ``place`` is what a command about it needs to find it, e.g. ``" --checkpoint FILE"``."""
    console = Console(file=stdout, highlight=False, markup=False, emoji=False)
    by_id = {candidate.id: candidate for candidate in run.tree}
    _print_heading(run, console)
    for line in describe_start(run.record):
        console.print(Text(inert(line, max_chars=_MAX_LINE), style="bold"), Text())
    if run.beams:
        console.print(_levels_table(run.beams, by_id), Text())
    for level, decision in run.decisions.items():
        told = describe_decision(
            level, decision.author, vetoed=decision.veto, edited=decision.edits, note=decision.note
        )
        console.print(Text(f"review  {inert(told, max_chars=_MAX_LINE)}"), soft_wrap=True)
    best_id = run.result.candidate_id if run.result else next(iter(run.beams[-1]), None) if run.beams else None
    if best_id is not None:
        console.print(_trace_table(best_id, by_id), Text())
    if run.icl_result is not None:
        print_examples(console, run.icl_result)
    elif run.collection is not None:
        print_outcomes(console, run.collection)
    elif run.result is not None:
        models = [run.record.settings.role(role).model for role in ROLES]
        console.print(render_summary(run.result, elapsed_s=run.worked_s or None, models=models), crop=False)
    else:
        _print_progress(run, console, best=by_id.get(best_id or ""), place=place)
    console.file.flush()


def _print_heading(run: StoredRun, console: Console) -> None:
    """Print what run it is: its status, when it was worked on, with which models and settings."""
    record, settings = run.record, run.record.settings
    began, changed = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (record.created_at, record.updated_at)
    )
    worked = f", worked {format_duration(run.worked_s)}" if run.worked_s else ""
    name = inert(record.thread_id, max_chars=_MAX_LINE)
    facts = f"  {record.status}  {DEED_BY_KIND[record.kind]}; started {began}, last change {changed}{worked}"
    models: dict[str, str] = {role: settings.role(role).model for role in ROLES if settings.role(role).model}
    shape = {name: getattr(settings, name) for name in _SHAPE} if record.kind == "search" else {}
    told = {**shape, **list_unusual(settings)}
    console.print(Text.assemble((name, "bold"), facts), soft_wrap=True)
    console.print(Text(f"models    {format_models(models)}"), soft_wrap=True)
    shown = ", ".join(f"{one} {json.dumps(value, ensure_ascii=False)}" for one, value in told.items())
    if shown:
        console.print(Text(f"settings  {inert(shown, max_chars=_MAX_LINE)}"), soft_wrap=True)
    console.print()


def _print_progress(run: StoredRun, console: Console, *, best: Candidate | None, place: str) -> None:
    status = Text(run.record.status, style="bold yellow")
    if run.record.message:
        status.append(f": {inert(run.record.message, max_chars=_MAX_LINE)}", style="default")
    console.print(status, soft_wrap=True)
    if best is not None:
        console.print(Text("best prompt so far:", style="bold"))
        console.print(Text(inert_block(best.prompt, max_chars=_MAX_PROMPT)), soft_wrap=True)
    if run.record.embedded_in is not None and run.record.status != "running":
        console.print(Text(run.record.way_on), soft_wrap=True)
        return
    deed, verb = _VERB_BY_STATUS.get(run.record.status, ("resume", "resume"))
    tail = " --follow" if run.record.status == "running" else ""
    if verb == "resume":
        named = "".join(f" --reward {shlex.quote(one)}" for one in run.record.settings.reward or ())
        tail = f"{named} {run.record.resume_flags}".rstrip()
    command = tell_command(f"drpo {verb} {run.record.thread_id}{place}{tail}")
    console.print(Text(f"{deed} with: {command}"), soft_wrap=True)


def _levels_table(beams: list[list[str]], by_id: Mapping[str, Candidate]) -> Table:
    table = make_table("levels")
    table.add_column("level", justify="right", no_wrap=True)
    table.add_column("beam", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("path reward", justify="right", no_wrap=True)
    for level, beam in enumerate(beams):
        for rank, candidate_id in enumerate(beam):
            candidate = by_id[candidate_id]
            cells = ("" if rank else str(level), candidate_id, candidate.origin)
            rewards = (_reward(candidate.reward), _reward(candidate.path_reward))
            table.add_row(*_inert_cells(*cells, *rewards))
    return table


def _trace_table(candidate_id: str, by_id: Mapping[str, Candidate]) -> Table:
    table = make_table("path to the prompt")
    for heading in ("candidate", "from"):
        table.add_column(heading, no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    # Rich narrows columns that may wrap first: the prompt alone gives way, and its text does not wrap either.
    table.add_column("prompt", ratio=1)
    trace: list[Candidate] = []
    at: str | None = candidate_id
    while at is not None:
        trace.insert(0, by_id[at])
        at = by_id[at].parent_id
    for one in trace:
        prompt = Text(inert(one.prompt, max_chars=_MAX_LINE), no_wrap=True, overflow="ellipsis")
        table.add_row(*_inert_cells(one.id, one.origin, _reward(one.reward)), prompt)
    return table


def _inert_cells(*cells: str) -> list[Text]:
    return [Text(inert(cell, max_chars=_MAX_ID)) for cell in cells]


def _reward(reward: float | None) -> str:
    return "unscored" if reward is None else format_reward(reward)
