"""JSON to an OpenAI-compatible server, on one HTTP client per event loop.

Imported on first use, because ``openai`` takes a second or two.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import openai
from pydantic import JsonValue

from drpo_graph.models.bodies import read_body
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MAX_QUOTED, CallFailure, MalformedReplyError, classify_failure
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.surroundings import load_certificates, uses_socks
from drpo_graph.safety.redaction import mask_all, redact
from drpo_graph.safety.texts import shorten

_CONNECT_TIMEOUT_S = 15.0
_MAX_CONCURRENCY = 4
"""Requests of one wire in flight at once."""

_RESET_WAITS_S = (0.2, 1.0)
"""Before a request is made again whose connection was cut: the server is there, and one cut says nothing of it."""

HttpClient = openai.DefaultAsyncHttpxClient

Answer = dict[str, JsonValue] | CallFailure
"""A body, or why there is none."""


class Wire:
    """Requests to one server, each answered with its body or with what failed."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(_MAX_CONCURRENCY)
        self._client = _open_client(address, timeout_s=timeout_s)

    async def get(self, path: str) -> Answer:
        """Return the answer to a GET request; a path that begins with ``http`` is taken as it is."""
        return await self._exchange(path, None)

    async def post(self, path: str, body: Mapping[str, JsonValue]) -> Answer:
        """Return the answer to a POST request."""
        return await self._exchange(path, body)

    async def _exchange(self, path: str, body: Mapping[str, JsonValue] | None) -> Answer:
        for wait_s in _RESET_WAITS_S:
            answer = await self._exchange_once(path, body)
            if not (isinstance(answer, CallFailure) and answer.kind == "connection" and not answer.is_unreached):
                return answer
            await asyncio.sleep(wait_s)
        return await self._exchange_once(path, body)

    async def _exchange_once(self, path: str, body: Mapping[str, JsonValue] | None) -> Answer:
        secret = self.address.secret
        try:
            async with self._places, asyncio.timeout(self._timeout_s):
                answer = await exchange_json(self._client, path, body)
        except (openai.OpenAIError, OSError, ValueError, MalformedReplyError) as error:
            failure = classify_failure(error, secret=secret)
            return failure or CallFailure("malformed", "retry", shorten(redact(str(error), secret=secret), 300))
        return {name: mask_all(value, secret=secret) for name, value in answer.items()}


class CompletionsClient:
    """``/v1/completions`` for one model; raises whatever the client library raises."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._name = address.name
        self._client = _open_client(address, timeout_s=timeout_s)

    async def complete(self, body: Mapping[str, JsonValue], *, path: str = "/completions") -> Mapping[str, Any]:
        """Return the answer to a request, which needs not name the model."""
        return await exchange_json(self._client, path, {"model": self._name, **body})

    async def stream(self, body: Mapping[str, JsonValue]) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the parts of the answer as they come."""
        parts = await self._client.post(
            "/completions",
            cast_to=object,
            body={"model": self._name, **body},
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        async with parts:
            async for part in parts:
                if not isinstance(part, dict):
                    raise MalformedReplyError(f"a part of the server's answer is no object: {str(part)[:MAX_QUOTED]}")
                yield part


async def exchange_json(client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the server's answer as it came: to a POST request, or to a GET request where there is no body.

    The client's own methods make objects of each message and of each token's probabilities: most of a call's CPU.

    Raises:
        MalformedReplyError: it is no JSON object.
    """
    try:
        if body is None:
            answer = await client.get(path, cast_to=object)
        else:
            answer = await client.post(path, cast_to=object, body=dict(body))
    except (ValueError, RecursionError) as error:
        # Not only a JSONDecodeError: bytes that are no text, a number of 5,000 digits, arrays in arrays in arrays.
        raise MalformedReplyError(f"the server's answer is no JSON: {error}") from error
    if isinstance(answer, str):
        # Declared as something else: an event stream though none was asked for, or just another kind of text.
        return read_body(answer)
    if not isinstance(answer, dict):
        raise MalformedReplyError(f"the server's answer is no JSON object: {str(answer)[:MAX_QUOTED]}")
    return answer


def limit_time(timeout_s: float) -> openai.Timeout:
    """Return the limits of a request: a host that drops packets is found out soon, however long replies may take."""
    return openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))


def shared_http_client() -> HttpClient:
    """Return the running event loop's HTTP client; whoever uses it leaves it open."""
    client: HttpClient = _http_clients.get().client
    return client


def _open_client(address: Address, *, timeout_s: float) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=address.base_url,
        api_key=address.api_key,
        max_retries=0,
        timeout=limit_time(timeout_s),
        http_client=shared_http_client(),
    )


class _HttpClient(NamedTuple):
    """An HTTP client and the generator that closes it."""

    client: Any
    closer: AsyncGenerator[None]


def _open_http_client() -> _HttpClient:
    """Return an HTTP client that is closed when its event loop ends, whoever runs the loop."""
    options: dict[str, Any] = {"verify": load_certificates(), "event_hooks": {"response": [_stay_at_host]}}
    try:
        # A third less CPU per call than httpx, which alone speaks to SOCKS proxies.
        client = (openai.DefaultAsyncHttpxClient if uses_socks() else openai.DefaultAioHttpClient)(**options)
    except RuntimeError:  # aiohttp is not installed.
        client = openai.DefaultAsyncHttpxClient(**options)
    closer = _close_at_end(client)
    # A loop that ends finishes the generators begun in it: asyncio.run, pytest-asyncio and uvloop all see to that.
    with suppress(StopIteration):
        closer.asend(None).send(None)
    return _HttpClient(client, closer)


async def _stay_at_host(response: Any) -> None:
    """Leave a redirect to another host unfollowed: prompts would go where nobody sent them."""
    place = response.headers.get("location")
    if place is not None and response.is_redirect and response.url.join(place).host != response.url.host:
        del response.headers["location"]


async def _close_at_end(client: Any) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await client.aclose()


_http_clients = PerLoop(_open_http_client)
