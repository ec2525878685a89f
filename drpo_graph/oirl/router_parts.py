"""What a router has learned, as records and arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from drpo_graph.oirl.ensemble import Ensemble
from drpo_graph.oirl.features import FeatureSpace, Floats
from drpo_graph.oirl.gate import Gate
from drpo_graph.oirl.portfolio import Portfolio
from drpo_graph.records import Record

Policy = Literal["safe", "best", "fallback"]
"""``safe``: another prompt than the best single one only where the evidence supports it. ``best``: the highest expected
reward. ``fallback``: the paper's rule, the best of the tried prompts, and one of the others where that is expected to
be right in less than half of the cases."""


class KnownPrompt(Record):
    """A prompt that a router may choose."""

    text: str
    name: str
    is_tried: bool = True
    """Whether it was learned from; an unseen one is predicted from its text alone."""
    num_trials: int = 0
    mean_outcome: float | None = None
    tokens: float | None = None
    """What a call with it cost on average; ``None`` where nobody counted."""
    shift: float = 0.0
    """What anchor outcomes add to its logits."""
    has_anchors: bool = False


class Provenance(Record):
    """What a router was learned from, and how."""

    reward_model: str
    embeddings: str
    embeddings_base_url: str | None = None
    """Where they were served; ``None`` where that was the process itself, or not known."""
    data_digest: str
    settings_digest: str
    model: str
    """Whose answers they were."""
    num_rows: int
    num_queries: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class RouterParts:
    """All that a router has learned."""

    provenance: Provenance
    space: FeatureSpace
    ensemble: Ensemble
    gate: Gate
    prompts: tuple[KnownPrompt, ...]
    prompt_vectors: Floats
    """Their embeddings, of length 1."""
    reference: Floats
    """Features of some queries that were learned from: what is usual."""
    price_per_1k: float = 0.0
    """Reward that 1,000 tokens are worth."""
    policy: Policy = "safe"
    portfolio: Portfolio | None = None
    """How the prompts were chosen of more; ``None`` where all that were tried are there."""


def price_prompts(prompts: Sequence[KnownPrompt], *, price_per_1k: float) -> Floats:
    """Return what is taken off the outcome of each prompt; one whose tokens nobody counted costs what is usual."""
    known = [one.tokens for one in prompts if one.tokens is not None]
    usual = float(np.mean(known)) if known else 0.0
    tokens = [usual if one.tokens is None else one.tokens for one in prompts]
    return np.asarray(tokens, dtype=np.float32) * np.float32(price_per_1k / 1_000)
