"""One JSON request to a server, answered with its body or with what failed. No retries, no limits.

Imported on first use, because ``openai`` takes a second or two.
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import openai
from pydantic import JsonValue

from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MAX_QUOTED, CallFailure, MalformedReplyError, classify_failure
from drpo_graph.safety.redaction import mask_all, redact
from drpo_graph.safety.texts import shorten

_CONNECT_TIMEOUT_S = 15.0

HttpClient = openai.DefaultAsyncHttpxClient

Answer = dict[str, JsonValue] | CallFailure
"""A body, or why there is none."""


class Wire:
    """Requests to one server; an asynchronous context manager.

    Args:
        address: Where to, and with which key.
        timeout_s: Longest wait for one answer.
        max_concurrency: Requests in flight at once.
        http_client: Carries the requests, and is left open; one of its own when absent, which is slow to make.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout_s: float,
        max_concurrency: int = 4,
        http_client: HttpClient | None = None,
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(max_concurrency)
        self._is_owner = http_client is None
        self._client = openai.AsyncOpenAI(
            base_url=address.base_url,
            api_key=address.api_key,
            max_retries=0,
            timeout=openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
            http_client=http_client,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_owner:
            await self._client.close()

    async def get(self, path: str) -> Answer:
        """Return the answer to a GET request; a path that begins with ``http`` is taken as it is."""
        return await self._exchange(path, None)

    async def post(self, path: str, body: Mapping[str, JsonValue]) -> Answer:
        """Return the answer to a POST request."""
        return await self._exchange(path, body)

    async def _exchange(self, path: str, body: Mapping[str, JsonValue] | None) -> Answer:
        try:
            async with self._places, asyncio.timeout(self._timeout_s):
                answer = await (
                    self._client.get(path, cast_to=object)
                    if body is None
                    else self._client.post(path, cast_to=object, body=dict(body))
                )
            if not isinstance(answer, dict):
                raise MalformedReplyError(f"expected a JSON object, got {str(answer)[:MAX_QUOTED]!r}")
        except (openai.OpenAIError, OSError, ValueError, MalformedReplyError) as error:
            failure = classify_failure(error, secret=self.address.secret)
            # A 200 whose body is no JSON is a ValueError.
            return failure or CallFailure(
                "malformed", "retry", shorten(redact(str(error), secret=self.address.secret), 300)
            )
        return {name: mask_all(value, secret=self.address.secret) for name, value in answer.items()}
