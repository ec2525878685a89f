"""Anchor outcomes: a few labelled trials of a prompt that was never learned from, and what they say of it.

The reward model says how hard each anchor query is; the outcomes say how much better or worse the prompt does than its
text lets one expect. That is one number per prompt, a shift of its logits, shrunk by how much the prompts are found to
differ from what is expected of them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.features import EmbeddedTexts, FeatureTable, Floats, embed_texts
from drpo_graph.oirl.rewards.logits import to_probabilities
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.router_parts import KnownPrompt, RouterParts
from drpo_graph.safety.texts import shorten

_USUAL_SPREAD: Final = 0.2
"""How much prompts differ from what their texts let one expect: a standard deviation on the logit scale."""
_USUAL_WEIGHT: Final = 2
"""That is believed as much as so many prompts with anchors."""
_STEPS: Final = 50
_ROUNDS: Final = 100
_ENOUGH: Final = 1e-4


class Anchored(NamedTuple):
    """What was expected of a prompt on its anchor queries, and what happened."""

    logits: Floats
    outcomes: Floats
    """From 0 to 1."""


def fit_shifts(prompts: Sequence[Anchored]) -> list[float]:
    """Return what is to be added to each prompt's logits, the likeliest given the anchor outcomes.

    Each is shrunk to the mean of all, the more the less they are found to differ: where texts tell what prompts are
    worth, a few dozen outcomes say less than the texts do, and must not drown them (empirical Bayes: the spread is
    found by expectation maximisation, with Laplace's approximation).
    """
    mean, spread = 0.0, _USUAL_SPREAD
    shifts: list[float] = []
    for _ in range(_ROUNDS):
        fits = [_fit_shift(one, mean=mean, spread=spread) for one in prompts]
        shifts = [shift for shift, _ in fits]
        # As if by one more prompt, of which the text told all.
        mean = sum(shifts) / (len(shifts) + 1)
        squares = sum((shift - mean) ** 2 + variance for shift, variance in fits)
        former = spread
        spread = math.sqrt((squares + _USUAL_WEIGHT * _USUAL_SPREAD**2) / (len(fits) + _USUAL_WEIGHT))
        if abs(spread - former) < _ENOUGH:
            break
    return shifts


def _fit_shift(prompt: Anchored, *, mean: float, spread: float) -> tuple[float, float]:
    """Return the likeliest shift and its variance."""
    x, y = prompt.logits.astype(np.float64), prompt.outcomes.astype(np.float64)
    shift, curvature = mean, 1 / spread**2
    for _ in range(_STEPS):
        p = to_probabilities(x + shift).astype(np.float64)
        curvature = float((p * (1 - p)).sum()) + 1 / spread**2
        step = (float((p - y).sum()) + (shift - mean) / spread**2) / curvature
        shift -= float(np.clip(step, -1, 1))
        if abs(step) < _ENOUGH:
            break
    return shift, 1 / curvature


async def offer_prompts(
    router: PromptRouter,
    prompts: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    anchors: Demonstrations | None = None,
) -> PromptRouter:
    """Return a router that chooses among other prompts; those that it has learned from stay known.

    Args:
        router: A router that has learned.
        prompts: The prompts to choose from.
        names: A short label of each; a shortened text when absent.
        anchors: Labelled trials of them, on any queries: a few dozen are enough to correct what is expected of a prompt
            that was never tried. Trials of other prompts are left out.

    Raises:
        DemonstrationsError: there is no prompt, two are equal, or no anchor is of one of them.
        EmbeddingsError: the texts cannot be embedded.
    """
    if not prompts or len(set(prompts)) < len(prompts):
        raise DemonstrationsError("Expected at least one prompt to choose from, and none of them twice.")
    vectors = (await embed_texts(prompts, router.embeddings)).vectors
    known = {one.text: one for one in router.prompts}
    labels = names or [shorten(text, 40) for text in prompts]
    offered = [
        known.get(text, KnownPrompt(text=text, name=name, is_tried=False))
        for text, name in zip(prompts, labels, strict=True)
    ]
    if anchors is not None:
        queries = await embed_texts(anchors.queries, router.embeddings)
        offered = _correct(router.parts, offered, vectors, anchors=anchors, queries=queries)
    gate = router.parts.gate
    best = router.prompts[gate.best].text
    # Where the best tried prompt is not on offer, the router finds the best of those that are.
    gate = gate.model_copy(update={"best": prompts.index(best) if best in prompts else 0})
    parts = replace(router.parts, prompts=tuple(offered), prompt_vectors=vectors, gate=gate)
    return PromptRouter(parts, router.embeddings)


def _correct(
    parts: RouterParts,
    offered: Sequence[KnownPrompt],
    vectors: Floats,
    *,
    anchors: Demonstrations,
    queries: EmbeddedTexts,
) -> list[KnownPrompt]:
    prompts = parts.space.of_prompts(EmbeddedTexts(tuple(one.text for one in offered), vectors))
    expected = parts.ensemble.predict(FeatureTable(parts.space.of_queries(queries), prompts)).mean(axis=0)
    number_by_text = {text: number for number, text in enumerate(anchors.prompts)}
    corrected, places, found = list(offered), [], []
    for place, one in enumerate(offered):
        rows: NDArray[np.intp] = np.flatnonzero(anchors.prompt_ids == number_by_text.get(one.text, -1))
        if one.is_tried or not len(rows):
            continue
        places.append(place)
        found.append(Anchored(expected[anchors.query_ids[rows], place], anchors.outcomes[rows]))
        tokens = anchors.tokens[rows]
        counted = tokens[~np.isnan(tokens)]
        corrected[place] = one.model_copy(
            update={
                "has_anchors": True,
                "num_trials": len(rows),
                "tokens": float(counted.mean()) if len(counted) else None,
            }
        )
    if not places:
        raise DemonstrationsError(
            f"None of the {len(anchors)} anchors is a trial of a prompt that is offered and was never tried: their "
            "texts must be the same, to the letter."
        )
    for place, shift in zip(places, fit_shifts(found), strict=True):
        corrected[place] = corrected[place].model_copy(update={"shift": shift})
    return corrected
