"""A request that does not fit the model's context is told before it is sent."""

import pytest

from drpo_graph.models.context_window import ContextWindow
from drpo_graph.models.failures import OVERFLOW, CallFailure, is_context_overflow
from drpo_graph.models.request import Request


class Counter:
    """Counts words, if at all, and how often it was asked."""

    def __init__(self, *, is_able: bool = True) -> None:
        self.num_asked = 0
        self._is_able = is_able

    async def count(self, request: Request) -> int | None:
        self.num_asked += 1
        return sum(len(message["content"].split()) for message in request.messages) if self._is_able else None


def ask(num_words: int, max_tokens: int) -> Request:
    return Request([{"role": "user", "content": "word " * num_words}], max_tokens=max_tokens)


async def test_short_prompt_is_not_counted() -> None:
    counter = Counter()
    request = ask(10, 100)
    assert await ContextWindow(1000, counter.count).fit(request) is request
    assert counter.num_asked == 0


async def test_reply_is_limited_to_what_the_prompt_leaves() -> None:
    counter = Counter()
    window = ContextWindow(1000, counter.count)
    fitting = await window.fit(ask(900, 100))
    assert isinstance(fitting, Request)
    assert fitting.max_tokens == 100
    shortened = await window.fit(ask(999, 100))
    assert isinstance(shortened, Request)
    assert shortened.max_tokens == 1
    assert counter.num_asked == 2


@pytest.mark.parametrize("num_words", [1000, 5000])
async def test_prompt_longer_than_the_context_is_refused_with_both_numbers(num_words: int) -> None:
    failure = await ContextWindow(1000, Counter().count).fit(ask(num_words, 1))
    assert isinstance(failure, CallFailure)
    assert failure.kind == OVERFLOW
    assert f"the prompt has {num_words:,} tokens, the model's context 1,000" in failure.message
    assert is_context_overflow(failure)


async def test_what_nobody_can_count_is_left_to_the_server() -> None:
    request = ask(5000, 100)
    assert await ContextWindow(1000, Counter(is_able=False).count).fit(request) is request
