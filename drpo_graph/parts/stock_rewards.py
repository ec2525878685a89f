"""Rewards that need no code: what an answer checker says of a response, as a score from 1 to 5."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from drpo_graph.errors import DatasetError, ReplyError
from drpo_graph.parts.checkers import Checker, is_stock, load_checker
from drpo_graph.parts.protocols import Reward
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Query
from drpo_graph.safety.texts import shorten

STOCK_REWARDS = ("exact", "contains", "numeric", "regex", "regex:PATTERN", "json", "schema:FILE")
"""By the names that ``--reward`` takes."""

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class StockReward:
    """Scores a response 5 where a checker finds it right, and 1 where it finds it wrong."""

    STORED_NAME: ClassVar[str] = "drpo_graph.rewards.StockReward"

    checker: Checker

    @property
    def identity(self) -> str:
        """What tells it from others in a run's fingerprint."""
        return self.checker.spec

    async def __call__(self, query: Query, response: str) -> Reward:
        """Return the score, with what was expected as its feedback.

        Raises:
            ReplyError: the query has no reference that the checker can use.
        """
        if (fault := self.find_fault(query)) is not None:
            raise ReplyError(f"query {query.id!r}: {fault}", kind="reward_error")
        assert self.checker.function is not None, "a rule has a function"
        outcome = await cast("Awaitable[float]", self.checker.function(query, response, query.reference))
        told = f" ({shorten(query.reference, 200)})" if self.checker.find_fault is not None else ""
        verdict = "It is what was expected" if outcome == 1 else "It is not what was expected"
        return Reward(
            score=MIN_SCORE + outcome * (MAX_SCORE - MIN_SCORE), feedback=f"{verdict}{told}, by {self.checker.spec}."
        )

    def find_fault(self, query: Query) -> str | None:
        """Return why a query cannot be judged, or ``None`` where it can."""
        if self.checker.find_fault is None:
            return None
        return self.checker.find_fault(query.reference) if query.reference else "it has no reference"


def find_stock_reward(spec: str) -> StockReward | None:
    """Return the reward that needs no code by its name, or ``None`` where that names a function.

    Raises:
        SettingsError: its pattern is none, or its file cannot be used.
    """
    return StockReward(load_checker(spec)) if is_stock(spec) else None


def check_references(rewards: Sequence[object], queries: Sequence[Query]) -> None:
    """Do nothing where all queries have what the rewards compare with.

    Raises:
        DatasetError: some have not; it names the first.
    """
    for reward in rewards:
        if not isinstance(reward, StockReward):
            continue
        faults = [(one.id, fault) for one in queries if (fault := reward.find_fault(one)) is not None]
        if faults:
            named = "; ".join(f"{query_id!r}: {fault}" for query_id, fault in faults[:_MAX_NAMED])
            more = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
            raise DatasetError(
                f"The reward {reward.checker.spec!r} cannot judge {len(faults)} of {len(queries)} queries "
                f"({named}{more}). Give each an answer in the field `answer` or `reference`, or choose another reward."
            )
