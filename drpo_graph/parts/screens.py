"""What chooses among a prompt's rewrites before any of them is run, where more were written than are to be."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from drpo_graph.errors import ScreenError, SettingsError
from drpo_graph.records import Query
from drpo_graph.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class ScreenTrial:
    """What the run has seen of a prompt on one query."""

    prompt: str
    query: str
    reward: float
    """1 (worst) to 5 (best)."""


@dataclass(frozen=True, slots=True)
class ScreenRequest:
    """What a screen works from."""

    rewrites: Sequence[str]
    """Of one parent, in the order in which they were written; more than are kept."""
    num_kept: int
    queries: Sequence[Query]
    """On which those that are kept are run."""
    trials: Sequence[ScreenTrial]
    """Of the levels that are scored, the oldest first: the same whenever and however often a run is resumed. Those of
    held-out queries are not among them."""
    seed: int


@dataclass(frozen=True, slots=True)
class ScreenChoice:
    """Which rewrites are run."""

    kept: tuple[int, ...]
    """Their places among the rewrites, best first."""
    expected: tuple[float, ...] | None = None
    """The reward expected of each rewrite, 1 to 5; ``None`` where nobody knows."""


class RewriteScreen(Protocol):
    """Drops rewrites before they cost calls. Must choose alike from equal requests, and ask no model of the run.

    Where ``choose`` is not asynchronous, it runs in a thread. Where there is an ``identity``, a text, that is a part of
    the run's fingerprint.
    """

    def choose(self, request: ScreenRequest) -> Awaitable[ScreenChoice] | ScreenChoice:
        """Return which rewrites are run: at least one, and at most ``request.num_kept``."""
        ...


def check_screen(settings: Settings, screen: RewriteScreen | None) -> None:
    """Do nothing where something chooses among rewrites, or no more are written than are run.

    Raises:
        SettingsError: nothing does.
    """
    if settings.is_screened and screen is None:
        raise SettingsError(
            f"n_proposed={settings.n_proposed} is more than n_actions={settings.n_actions}, and nothing chooses among "
            "the rewrites: give the part screen, such as drpo_graph.oirl.open_screen(settings)."
        )


def check_choice(choice: ScreenChoice, request: ScreenRequest) -> ScreenChoice:
    """Return a choice that can be followed.

    Raises:
        ScreenError: it names no rewrite, too many, one twice, or one that there is not.
    """
    kept, num_rewrites = choice.kept, len(request.rewrites)
    is_usable = 1 <= len(kept) <= request.num_kept and len(set(kept)) == len(kept)
    if not is_usable or not all(0 <= one < num_rewrites for one in kept):
        raise ScreenError(
            f"The screen kept {list(kept)} of {num_rewrites} rewrites: expected 1 to {request.num_kept} distinct "
            f"places from 0 to {num_rewrites - 1}. Mend it, then resume."
        )
    if choice.expected is not None and len(choice.expected) != num_rewrites:
        raise ScreenError(
            f"The screen expects {len(choice.expected)} rewards of {num_rewrites} rewrites: expected one each, or "
            "none. Mend it, then resume."
        )
    return choice
