"""The error budget: a role whose samples fail too often stops the run, which would only pretend to get on."""

from collections import Counter, deque

from drpo_graph.errors import TooManyFailuresError
from drpo_graph.records import Failure, Role

WINDOW = 50
"""The share is that of so many last samples."""
MIN_SAMPLES = 20
"""Fewer say nothing."""


class FailureBudget:
    """The outcomes of a role's last samples, in one run and process."""

    def __init__(self) -> None:
        self._outcomes: deque[Failure | None] = deque(maxlen=WINDOW)

    def note(self, failure: Failure | None, *, role: Role, max_share: float) -> None:
        """Count a sample, after everything that was done to get a usable reply.

        Args:
            failure: Why it has none, if so.
            role: Whose sample it is, for the message.
            max_share: How many of the last samples may fail, as a share; 1 lets all of them.

        Raises:
            TooManyFailuresError: more of them did.
        """
        self._outcomes.append(failure)
        failures = [one for one in self._outcomes if one is not None]
        total = len(self._outcomes)
        # A sample that came out is no reason to stop, even while the share is still high.
        if failure is None or total < MIN_SAMPLES or len(failures) <= max_share * total:
            return
        kinds = Counter(one.kind for one in failures).most_common(3)
        told = ", ".join(f"{kind} {count}" for kind, count in kinds)
        raise TooManyFailuresError(
            f"{len(failures)} of the {role} model's last {total} samples had no usable reply, more than "
            f"max_failure_share={max_share:g} allows ({told}; the last one: {failure.detail}). Check it with "
            f"`drpo models check`; a resumed run finds these replies again unless it is told to ask anew. "
            f"--set max_failure_share=1 goes on whatever fails.",
            role=role,
            share=len(failures) / total,
        )
