"""Portfolios: the few prompts of many that together serve queries best, where that is more than the best does."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.features import Floats
from drpo_graph.oirl.gate import find_best_single
from drpo_graph.records import Record

_LEAST_DIFFERENCES: Final = 8
"""With fewer queries on which the outcomes differ, an interval means nothing."""
_CONFIDENCE: Final = 0.95
_LEAST_GAIN: Final = 1e-4
"""In expected outcome: a prompt that adds less is left out."""


class Portfolio(Record):
    """A set of prompts, and whether choosing among them by query beats its best member."""

    prompts: tuple[int, ...]
    """Their numbers in the table, the best single one first; it alone where no set is certain to beat it."""
    proposed: tuple[int, ...]
    """The set that was tried on queries held back."""
    expected: tuple[float, ...]
    """What the best of the first 1, 2, ... of them is expected to bring, over the queries they were chosen on."""
    gain: float | None
    """Mean gain over the best member on the queries held back; ``None`` where no pair of outcomes is known there."""
    interval_low: float | None
    """It is higher with a probability of 95%; ``None`` where too few outcomes differ to say."""
    num_queries: int
    """Held-back queries on which both outcomes are known."""

    @property
    def beats_best(self) -> bool:
        """Whether the set beats its best member on queries that had no part in its choice."""
        return self.interval_low is not None and self.interval_low > 0

    @property
    def reason(self) -> str:
        """What was found, in a sentence."""
        if len(self.proposed) == 1:
            return "no second prompt is expected to serve any queries better"
        if self.gain is None or self.interval_low is None:
            return f"too few outcomes differ to tell whether {len(self.proposed)} prompts beat the best of them"
        found = f"{self.gain:+.3f} on {self.num_queries} held-back queries"
        found += f", 95% sure of {self.interval_low:+.3f} or more"
        if not self.beats_best:
            return f"no gain over the best single prompt is certain: {found}"
        return f"{len(self.proposed)} prompts beat the best of them: {found}"


def choose_portfolio(rewards: Floats, outcomes: Floats, *, size: int, seed: int) -> Portfolio:
    """Return the set of at most so many prompts that serves queries best: greedily on one half of them.

    The other half decides whether choosing among them by query beats the best member. There the outcomes are looked
    at for the first time; the predictions are of a model that had seen neither.

    Args:
        rewards: What is predicted for queries that the model had not seen, ``(num_queries, num_prompts)``.
        outcomes: What happened, likewise; NaN where a pair was not tried.
        size: The most prompts.
        seed: Of the halves.

    Raises:
        DemonstrationsError: the size is below 1, or there are fewer than two queries with outcomes.
    """
    seen = np.flatnonzero(~np.isnan(outcomes).all(axis=1) & ~np.isnan(rewards).any(axis=1))
    if size < 1 or len(seen) < 2:
        raise DemonstrationsError(
            f"A portfolio of {size} prompts cannot be chosen on {len(seen)} queries with outcomes: expected one prompt "
            "or more, and two queries or more."
        )
    mixed = np.random.default_rng(seed).permutation(seen)
    chosen_on, held_back = mixed[::2], mixed[1::2]
    prices = np.zeros(outcomes.shape[1], dtype=np.float32)
    best = find_best_single(outcomes[chosen_on], prices=prices)
    proposed, expected = _grow(rewards[chosen_on], best, size=size)
    gain, low, num = _try(rewards[held_back], outcomes[held_back], proposed)
    found = Portfolio(
        prompts=tuple(proposed),
        proposed=tuple(proposed),
        expected=tuple(expected),
        gain=gain,
        interval_low=low,
        num_queries=num,
    )
    return found if found.beats_best else found.model_copy(update={"prompts": (best,)})


def _grow(rewards: Floats, best: int, *, size: int) -> tuple[list[int], list[float]]:
    """Return the best prompt and, one by one, what adds the most to the expected outcome of the best of the set."""
    members, highest = [best], rewards[:, best].astype(np.float64)
    expected = [float(highest.mean())]
    while len(members) < min(size, rewards.shape[1]):
        added = np.maximum(rewards, highest[:, None]).mean(axis=0)
        added[members] = -np.inf
        found = int(added.argmax())
        if added[found] - expected[-1] < _LEAST_GAIN:
            break
        members.append(found)
        highest = np.maximum(highest, rewards[:, found])
        expected.append(float(highest.mean()))
    return members, expected


def _try(rewards: Floats, outcomes: Floats, members: list[int]) -> tuple[float | None, float | None, int]:
    chosen: NDArray[np.intp] = np.asarray(members)[rewards[:, members].argmax(axis=1)]
    differences = outcomes[np.arange(len(outcomes)), chosen] - outcomes[:, members[0]]
    differences[chosen == members[0]] = 0.0
    known = differences[~np.isnan(differences)].astype(np.float64)
    if not known.size:
        return None, None, 0
    gain = float(known.mean())
    if np.count_nonzero(known) < _LEAST_DIFFERENCES:
        return gain, None, int(known.size)
    from scipy.stats import t  # Slow to load.

    error = float(known.std(ddof=1)) / np.sqrt(known.size)
    return gain, gain - float(t.ppf(_CONFIDENCE, known.size - 1)) * error, int(known.size)
