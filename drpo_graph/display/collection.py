"""A collection of demonstrations as displays show it: how far it is, and what it came to, prompt by prompt."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from drpo_graph.display.formatting import NONE, format_count, format_kinds, format_models
from drpo_graph.display.tables import cost_table, make_table
from drpo_graph.events.schema import CollectionFinished, CollectionStarted, TrialFinished
from drpo_graph.records import CollectionResult, PromptOutcome
from drpo_graph.safety.installing import tell_command
from drpo_graph.safety.terminal import inert

DEMONSTRATIONS_FILE = "demonstrations.jsonl"
_RESULT_FILE = "result.json"
_MAX_NAME, _MAX_LINE = 40, 400
_NUM_LINES = 20
"""Lines that tell in a log how far it is, about."""


@dataclass(slots=True)
class PromptTally:
    """One prompt's trials."""

    num_labelled: int = 0
    num_unlabelled: int = 0
    total: float = 0.0
    """Of the outcomes."""

    @property
    def mean(self) -> float | None:
        """The mean outcome; ``None`` without any."""
        return self.total / self.num_labelled if self.num_labelled else None

    @classmethod
    def of(cls, prompt: PromptOutcome) -> "PromptTally":
        """Return the tally that a run begins or goes on with."""
        total = (prompt.mean_outcome or 0.0) * prompt.num_labelled
        return cls(prompt.num_labelled, prompt.num_unlabelled, total)


@dataclass(slots=True)
class CollectionView:
    """What a display shows of a collection."""

    num_planned: int
    """Trials in all."""
    prompts: dict[str, PromptTally]
    """By name, in the run's order."""
    last: dict[str, None] = field(default_factory=dict)
    """The prompts that were tried last, the latest at the end."""

    @classmethod
    def start(cls, event: CollectionStarted) -> "CollectionView":
        """Return the view of a collection that begins or goes on."""
        prompts = {one.name: PromptTally.of(one) for one in event.prompts}
        return cls(event.num_planned, prompts)

    @property
    def num_unlabelled(self) -> int:
        """Trials without an outcome."""
        return sum(one.num_unlabelled for one in self.prompts.values())

    @property
    def num_done(self) -> int:
        """Trials that are made."""
        return self.num_unlabelled + sum(one.num_labelled for one in self.prompts.values())

    @property
    def mean_outcome(self) -> float | None:
        """The mean over all labelled trials; ``None`` without any."""
        num_labelled = self.num_done - self.num_unlabelled
        return sum(one.total for one in self.prompts.values()) / num_labelled if num_labelled else None

    def take(self, event: TrialFinished) -> None:
        """Count a trial."""
        tally = self.prompts.setdefault(event.prompt_name, PromptTally())
        tally.num_unlabelled -= event.was_unlabelled and tally.num_unlabelled > 0
        if event.outcome is None:
            tally.num_unlabelled += 1
        else:
            tally.num_labelled += 1
            tally.total += event.outcome
        self.last.pop(event.prompt_name, None)
        self.last[event.prompt_name] = None

    @property
    def has_line(self) -> bool:
        """Whether a log should tell how far it is, after the trial that was counted last."""
        return self.num_done % max(self.num_planned // _NUM_LINES, 1) == 0


def format_outcome(outcome: float | None) -> str:
    """Return an outcome from 0 to 1 with three decimals, ``-`` when there is none."""
    return NONE if outcome is None else f"{outcome:.3f}"


def describe_start(event: CollectionStarted) -> str:
    """Return what a collection begins, or goes on, with, in one line."""
    draws = f" x {event.num_trials}" if event.num_trials > 1 else ""
    parts = (
        f"{'resumed' if event.is_resumed else 'started'}  {inert(event.run_id, max_chars=80)}",
        f"queries {event.num_queries}",
        f"prompts {len(event.prompts)}{draws}",
        f"trials {event.num_planned}",
        f"checker {inert(event.checker, max_chars=_MAX_NAME)}",
        f"models {format_models(event.models)}" if event.models else "",
    )
    return "  ".join(filter(None, parts))


def describe_end(result: CollectionResult) -> str:
    """Return what a collection came to, in one line."""
    calls = sum(usage.calls for usage in result.usage_by_role.values())
    return f"demonstrations {result.num_labelled}, unlabelled {result.num_unlabelled}, calls {calls}"


def print_outcomes(console: Console, result: CollectionResult) -> None:
    """Print what became of every prompt."""
    table = make_table(f"outcomes by prompt, {inert(result.checker, max_chars=_MAX_NAME)}")
    table.add_column("prompt", no_wrap=True)
    for heading in ("mean outcome", "trials", "unlabelled", "tokens each"):
        table.add_column(heading, justify="right", no_wrap=True)
    # Rich narrows columns that may wrap first: the text alone gives way.
    table.add_column("text", ratio=1)
    for one in result.prompts:
        tokens = NONE if one.mean_tokens is None else format_count(round(one.mean_tokens))
        cells = (format_outcome(one.mean_outcome), str(one.num_labelled), str(one.num_unlabelled), tokens)
        text = Text(inert(one.prompt, max_chars=_MAX_LINE), no_wrap=True, overflow="ellipsis")
        table.add_row(Text(inert(one.name, max_chars=_MAX_NAME)), *cells, text)
    console.print(table)
    console.print(Text(describe_end(result)))
    console.print(cost_table(result))


def print_collection(console: Console, event: CollectionFinished, files: Sequence[Path]) -> None:
    """Print what a collection came to, where it is, and what can be done with it.

    Args:
        files: Those of a search in the same place, of which the run's folder is known.
    """
    print_outcomes(console, event.result)
    folders = [one.parent for one in files if one.name == _RESULT_FILE]
    places = [Path(event.output)] if event.output else [folder / DEMONSTRATIONS_FILE for folder in folders]
    for path in (*places, *(folder / _RESULT_FILE for folder in folders)):
        console.print(Text(inert(str(path), max_chars=2000)), soft_wrap=True)
    if not event.result.num_labelled:
        kinds = format_kinds(event.result.failures_by_kind)
        console.print(Text(f"nothing to learn from: no response could be labelled ({kinds})", style="yellow"))
        return
    for path in places:
        for command in (tell_training(path), tell_evaluation(path)):
            console.print(Text(f"next: {inert(command, max_chars=2000)}"), soft_wrap=True)


def tell_training(path: Path) -> str:
    """Return the command that learns a router from demonstrations, and writes it beside them."""
    return _tell("train", path, path.parent / "router.npz")


def tell_evaluation(path: Path) -> str:
    """Return the command that evaluates choices by query on demonstrations, and writes its tables beside them."""
    return _tell("evaluate", path, path.parent / "evaluation")


def _tell(command: str, path: Path, output: Path) -> str:
    return tell_command(f"drpo oirl {command} {shlex.quote(str(path))} --output {shlex.quote(str(output))}")
