"""Judges that users write themselves: called under a limit of time, their failures told as what they are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from drpo_graph.errors import DRPOError, ReplyError, RewardError
from drpo_graph.records import Query

_Said = TypeVar("_Said")


async def ask_judge(
    judge: Callable[[], Awaitable[_Said]],
    *,
    called: str,
    query: Query,
    timeout_s: float,
    expects: tuple[type[Exception], ...],
    expects_setting: str,
) -> _Said:
    """Return what a judge says.

    Args:
        judge: Called without arguments.
        called: Names it within a sentence.
        query: What is judged an answer to.
        timeout_s: Longest wait.
        expects: What it may raise besides ``ReplyError`` where it cannot judge.
        expects_setting: Says where that is set.

    Raises:
        ReplyError: it said nothing in time, or raised this or what it may raise.
        RewardError: it raised anything else.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await judge()
    except DRPOError:
        raise
    except Exception as error:
        is_late = isinstance(error, TimeoutError) and limit.expired()
        told = f"no answer within {timeout_s:g} s" if is_late else f"{type(error).__name__}: {error}"
        if is_late or isinstance(error, expects):
            raise ReplyError(f"{called}: {told}", kind="reward_error") from error
        raise RewardError(
            f"{called[0].upper()}{called[1:]} failed on query {query.id!r}: {told}. Mend it, let it raise ReplyError, "
            f"or say what it may raise ({expects_setting}), then resume."
        ) from error
