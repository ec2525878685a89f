"""Whether a request fits the model's context: found out before it is sent, not read off a truncated answer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from drpo_graph.models.failures import OVERFLOW, CallFailure
from drpo_graph.models.request import Request

TEMPLATE_TOKENS = 64
"""What a chat template may add to a conversation, and"""
MESSAGE_TOKENS = 16
"""to each of its messages."""


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """How many tokens a model takes, prompt and reply together."""

    max_tokens: int
    count: Callable[[Request], Awaitable[int | None]]
    """Returns the exact number of prompt tokens, or ``None`` when nobody can tell."""

    async def fit(self, request: Request) -> Request | CallFailure:
        """Return the request, its reply limited to the room that the prompt leaves, or why it cannot be sent.

        A prompt that is surely short is not counted; one that cannot be counted is left to the server.
        """
        if self._is_surely_short(request):
            return request
        num_tokens = await self.count(request)
        if num_tokens is None or num_tokens + request.max_tokens <= self.max_tokens:
            return request
        if num_tokens < self.max_tokens:
            return replace(request, max_tokens=self.max_tokens - num_tokens)
        message = f"the prompt has {num_tokens:,} tokens, the model's context {self.max_tokens:,}"
        return CallFailure(OVERFLOW, "reject", message)

    def _is_surely_short(self, request: Request) -> bool:
        num_tokens = most_tokens([message["content"] for message in request.messages])
        return num_tokens + request.max_tokens <= self.max_tokens


def most_tokens(texts: Sequence[str]) -> int:
    """Return how many tokens a prompt of these messages has at most, in whatever template it is put."""
    # No tokenizer in use makes more tokens of a text than it has bytes.
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return num_bytes + TEMPLATE_TOKENS + MESSAGE_TOKENS * len(texts)
