"""Between probabilities and logits."""

import numpy as np
from numpy.typing import NDArray

from drpo_graph.oirl.features import Floats

_LEAST = 1e-4


def to_logits(probabilities: NDArray[np.floating]) -> Floats:
    """Return log odds, of probabilities that are kept from 0 and 1."""
    kept = np.clip(np.asarray(probabilities, dtype=np.float64), _LEAST, 1 - _LEAST)
    return np.log(kept / (1 - kept)).astype(np.float32)


def to_probabilities(logits: NDArray[np.floating]) -> Floats:
    """Return the probabilities whose log odds these are."""
    return (1 / (1 + np.exp(-np.clip(np.asarray(logits, dtype=np.float64), -30, 30)))).astype(np.float32)
