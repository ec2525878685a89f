"""Carry out ``drpo icl``, and ``drpo resume`` of such a run."""

from collections.abc import Coroutine
from dataclasses import dataclass

from drpo_graph.cli import execution
from drpo_graph.display import DisplayKind
from drpo_graph.icl import optimize_icl
from drpo_graph.records import ICLExample, ICLResult
from drpo_graph.runs.work import RunOptions
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.names import new_thread_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NewICLRun:
    """What a new run over ICL examples is given."""

    settings: Settings
    examples: tuple[ICLExample, ...]
    num_iters: int
    num_samples: int


def start(run: NewICLRun, thread_id: str | None, *, options: RunOptions, display: DisplayKind) -> None:
    """Start a run over ICL examples, under a new name unless it is given one, and show it."""
    name = thread_id or new_thread_id()

    def begin(shown: RunOptions) -> Coroutine[None, None, ICLResult]:
        return optimize_icl(
            run.examples,
            settings=run.settings,
            num_iters=run.num_iters,
            num_samples=run.num_samples,
            thread_id=name,
            options=shown,
        )

    execution.carry_out(name, begin, options=options, kind=display, serving=None)
