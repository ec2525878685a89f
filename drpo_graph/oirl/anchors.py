"""Anchor outcomes: a few labelled trials of a prompt that was never learned from, and what they say of it.

The reward model says how hard each anchor query is; the outcomes say how much better or worse the prompt does than its
text lets one expect. That is one number per prompt, a shift of its logits, shrunk by how much tried prompts differ.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.demonstrations import Demonstrations
from drpo_graph.oirl.features import EmbeddedTexts, FeatureTable, Floats, embed_texts
from drpo_graph.oirl.rewards.logits import to_logits, to_probabilities
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.router_parts import KnownPrompt, RouterParts
from drpo_graph.safety.texts import shorten

_LEAST_SPREAD: Final = 0.3
_MOST_SPREAD: Final = 2.0
_USUAL_SPREAD: Final = 1.0
_STEPS: Final = 50
_ENOUGH: Final = 1e-6


def fit_shift(logits: Floats, outcomes: Floats, *, spread: float) -> float:
    """Return what is to be added to a prompt's logits, the likeliest given its anchor outcomes.

    Args:
        logits: What was expected of the prompt on each anchor query.
        outcomes: What happened, from 0 to 1.
        spread: How much prompts differ from what is expected of them: a standard deviation on the logit scale.
    """
    x, y = logits.astype(np.float64), outcomes.astype(np.float64)
    shift = 0.0
    for _ in range(_STEPS):
        p = to_probabilities(x + shift).astype(np.float64)
        gradient = float((p - y).sum()) + shift / spread**2
        step = gradient / (float((p * (1 - p)).sum()) + 1 / spread**2)
        shift -= float(np.clip(step, -1, 1))
        if abs(step) < _ENOUGH:
            break
    return shift


def measure_spread(means: Sequence[float]) -> float:
    """Return how much tried prompts differ: the standard deviation of their mean outcomes, on the logit scale."""
    if len(means) < 2:
        return _USUAL_SPREAD
    return float(np.clip(to_logits(np.asarray(means)).std(ddof=1), _LEAST_SPREAD, _MOST_SPREAD))


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
        DemonstrationsError: there is no prompt, or two are equal.
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
    spread = measure_spread([one.mean_outcome for one in parts.prompts if one.mean_outcome is not None])
    number_by_text = {text: number for number, text in enumerate(anchors.prompts)}
    corrected = []
    for place, one in enumerate(offered):
        rows: NDArray[np.intp] = np.flatnonzero(anchors.prompt_ids == number_by_text.get(one.text, -1))
        if one.is_tried or not len(rows):
            corrected.append(one)
            continue
        shift = fit_shift(expected[anchors.query_ids[rows], place], anchors.outcomes[rows], spread=spread)
        tokens = anchors.tokens[rows]
        counted = tokens[~np.isnan(tokens)]
        corrected.append(
            one.model_copy(
                update={
                    "shift": shift,
                    "has_anchors": True,
                    "num_trials": len(rows),
                    "tokens": float(counted.mean()) if len(counted) else None,
                }
            )
        )
    return corrected
