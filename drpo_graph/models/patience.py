"""How long the first look at an endpoint waits for it: on the rules of any call, which the calls themselves keep apart.

A limit is waited out for as long as the server says; what a gateway says of a model that is not there costs a try.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from drpo_graph.models.failures import CallFailure

MIN_ANNOUNCED_S = 5.0
"""Waits from here on are told."""

_UNTOLD_WAIT_S = 120.0
"""How long a limit is waited out whose end the server does not tell."""
_MAX_BACKOFF_S = 60.0
_MAX_SILENCES = 2
"""So often is asked again where there was no answer in time."""
_PASSING_KINDS = frozenset({"http_408", "http_409", "http_425", "http_502", "http_503", "http_504", "http_529"})


def tell_nobody(message: str) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What a look at an endpoint waits for; by default nothing."""

    max_outage_s: float = 0.0
    """How long limits are waited out; 0 makes each one a try."""
    max_retries: int = 0
    """Further tries where an endpoint fails for the moment."""
    retry_wait_s: float = 0.5
    """Before the first further try; it doubles from there, unless the server says when."""
    tell: Callable[[str], None] = tell_nobody
    """Takes what there is to tell of waits."""

    def wait_for(self, failure: CallFailure, spent: "Spent", *, is_needed: bool) -> float | None:
        """Return the seconds after which to ask again, or ``None`` where that is not worth while.

        Args:
            failure: What came of the last try.
            spent: What the tries before it cost.
            is_needed: Whether nothing goes without the answer. Else only a time that the server tells is waited for.
        """
        told_s = failure.retry_after_s
        if failure.remedy != "retry" or not (told_s or is_needed):
            return None
        wait_s = told_s or min(_MAX_BACKOFF_S, self.retry_wait_s * 2 ** min(spent.num_tries, 30))
        if failure.is_limit and self.max_outage_s:
            most_s = self.max_outage_s if told_s else min(self.max_outage_s, _UNTOLD_WAIT_S)
            return wait_s if spent.waited_s + wait_s <= most_s else None
        if not failure.is_limit and failure.kind not in (*_PASSING_KINDS, "timeout"):
            return None
        # Each silence lasts long, and a wrong address may be silent for ever.
        most_tries = min(self.max_retries, _MAX_SILENCES) if failure.kind == "timeout" else self.max_retries
        return wait_s if spent.num_tries < most_tries and wait_s <= max(self.max_outage_s, _MAX_BACKOFF_S) else None

    def tell_wait(self, place: str, failure: CallFailure, wait_s: float) -> float:
        """Tell of a wait that is long enough to be noticed; return its seconds, 0 for one that is not."""
        if wait_s < MIN_ANNOUNCED_S:
            return 0.0
        what = "limits the rate" if failure.is_limit else "is not there for the moment"
        self.tell(
            f"{place} {what} ({failure.kind}: {failure.message}); the first look at it waits {wait_s:.0f} s, and "
            f"{self.max_outage_s:.0f} s at most"
        )
        return wait_s


class Spent(NamedTuple):
    """What the tries of one request have cost."""

    num_tries: int = 0
    waited_s: float = 0.0

    def after(self, wait_s: float) -> "Spent":
        """Return the same with one try more, and the wait after it."""
        return Spent(self.num_tries + 1, self.waited_s + wait_s)


NO_PATIENCE = Patience()
