"""What can be compared by its direction."""

import math
from collections.abc import Sequence


def is_usable(vector: Sequence[object]) -> bool:
    """Return whether a vector has a direction: finite numbers alone, not all of them 0."""
    numbers = [one for one in vector if isinstance(one, int | float) and math.isfinite(one)]
    return len(numbers) == len(vector) and any(numbers)
