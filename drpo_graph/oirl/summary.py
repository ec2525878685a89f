"""What a table of demonstrations holds, in numbers."""

from typing import Final, NamedTuple

import numpy as np

from drpo_graph.oirl.checks import check_demonstrations, list_models
from drpo_graph.oirl.demonstrations import SPLITS, Demonstrations, Split
from drpo_graph.oirl.splits import Leak, find_leak

SIDES: Final[tuple[Split, ...]] = ("train", "test", "")
"""In the order that they are told in."""


class SideSummary(NamedTuple):
    """One side of a table, or what one prompt did there."""

    num_rows: int
    num_queries: int
    mean_outcome: float
    """From 0 to 1."""


class PromptSummary(NamedTuple):
    """What is known of one prompt."""

    name: str
    text: str
    by_side: dict[Split, SideSummary]
    """The sides on which it was tried."""
    mean_tokens: float | None
    """What a call cost, in tokens; ``None`` where nobody counted."""


class TableSummary(NamedTuple):
    """A table in numbers."""

    num_rows: int
    num_queries: int
    num_rows_by_model: dict[str, int]
    by_side: dict[Split, SideSummary]
    """The sides that have rows."""
    prompts: tuple[PromptSummary, ...]
    num_tokens_known: int
    """Rows whose cost is known."""
    num_confidences: int
    """Rows with the confidence of an LLM self-critic."""
    digest: str
    checks: tuple[str, ...]
    """What is odd, one line each; the leak is among them."""
    leak: Leak | None


def summarise_demonstrations(demonstrations: Demonstrations) -> TableSummary:
    """Return what a table holds; prompts and queries without a row do not count."""
    models = np.bincount(demonstrations.model_ids, minlength=len(demonstrations.models))
    present = np.unique(demonstrations.prompt_ids)
    return TableSummary(
        num_rows=len(demonstrations),
        num_queries=len(np.unique(demonstrations.query_ids)),
        num_rows_by_model={
            name: int(models[demonstrations.models.index(name)]) for name in list_models(demonstrations)
        },
        by_side=_summarise_sides(demonstrations),
        prompts=tuple(_summarise_prompt(demonstrations, number) for number in present.tolist()),
        num_tokens_known=int(np.isfinite(demonstrations.tokens).sum()),
        num_confidences=int(np.isfinite(demonstrations.confidences).sum()),
        digest=demonstrations.digest(),
        checks=check_demonstrations(demonstrations),
        leak=find_leak(demonstrations),
    )


def _summarise_prompt(table: Demonstrations, number: int) -> PromptSummary:
    rows = table.take(table.prompt_ids == number)
    tokens = rows.tokens[np.isfinite(rows.tokens)]
    return PromptSummary(
        name=table.prompt_names[number],
        text=table.prompts[number],
        by_side=_summarise_sides(rows),
        mean_tokens=float(tokens.mean(dtype=np.float64)) if len(tokens) else None,
    )


def _summarise_sides(table: Demonstrations) -> dict[Split, SideSummary]:
    found: dict[Split, SideSummary] = {}
    for side in SIDES:
        is_in = table.splits == SPLITS.index(side)
        if is_in.any():
            mean = float(table.outcomes[is_in].mean(dtype=np.float64))
            found[side] = SideSummary(int(is_in.sum()), len(np.unique(table.query_ids[is_in])), mean)
    return found
