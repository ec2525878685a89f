"""What tests of the budget spend: prices, demands, usage, and time that passes when it is told to."""

import itertools

from drpo_graph.calls.budget import Budget, Demand
from drpo_graph.records import Usage

MODEL = "openai:m"
PRICES = {MODEL: {"input": 1000.0, "output": 2000.0}}
"""A tenth of a cent for a token in, twice that for one out."""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


_numbers = itertools.count()


def demand(max_prompt: int = 0, max_completion: int = 0, *, key: str = "") -> Demand:
    """Return the demand of a call's request; of a new call where it has no key."""
    return Demand(key or f"call {next(_numbers)}", MODEL, max_prompt, max_completion)


def usage(prompt: int = 0, completion: int = 0) -> Usage:
    """Return what one call used."""
    return Usage(calls=1, prompt_tokens=prompt, completion_tokens=completion)


async def spend(budget: Budget, wanted: Demand, used: Usage) -> None:
    """Make a call that uses so much."""
    async with budget.hold(wanted) as hold:
        hold.settle(used)
