"""JSON to an OpenAI-compatible server, on one HTTP client per event loop.

Imported on first use, because ``openai`` takes a second or two.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from functools import cache, partial
from typing import Any, NamedTuple

import openai
from pydantic import JsonValue

from drpo_graph.models.bodies import read_body
from drpo_graph.models.bounded_bodies import ENCODINGS, bound_body
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import (
    MAX_QUOTED,
    CallFailure,
    MalformedReplyError,
    ReportedError,
    classify_failure,
    is_no_http,
)
from drpo_graph.models.patience import NO_PATIENCE, Patience, Spent
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.server_words import read_status, read_words
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

    def __init__(self, address: Address, *, timeout_s: float, patience: Patience = NO_PATIENCE) -> None:
        self.address = address
        self.patience = patience
        self._timeout_s = timeout_s
        self._announced_s = 0.0
        self._places = asyncio.Semaphore(_MAX_CONCURRENCY)
        self._client = _open_client(address, timeout_s=timeout_s)

    async def get(self, path: str, *, timeout_s: float | None = None) -> Answer:
        """Return the answer to a GET request; a path that begins with ``http`` is taken as it is."""
        return await self._exchange(path, None, timeout_s=timeout_s)

    async def post(self, path: str, body: Mapping[str, JsonValue]) -> Answer:
        """Return the answer to a POST request."""
        return await self._exchange(path, body)

    async def _exchange(
        self, path: str, body: Mapping[str, JsonValue] | None, *, timeout_s: float | None = None
    ) -> Answer:
        spent = Spent()
        while True:
            answer = await self._exchange_unless_cut(path, body, timeout_s or self._timeout_s)
            if not isinstance(answer, CallFailure):
                return answer
            # What a server tells of itself can be done without.
            wait_s = self.patience.wait_for(answer, spent, is_needed=body is not None)
            if wait_s is None:
                return answer
            if wait_s >= 2 * self._announced_s:
                # Requests that wait for the same limit tell of it once.
                self._announced_s = self.patience.tell_wait(self.address.place, answer, wait_s)
            await asyncio.sleep(wait_s)
            spent = spent.after(wait_s)

    async def _exchange_unless_cut(self, path: str, body: Mapping[str, JsonValue] | None, timeout_s: float) -> Answer:
        for wait_s in _RESET_WAITS_S:
            answer = await self._exchange_once(path, body, timeout_s)
            if not (isinstance(answer, CallFailure) and answer.kind == "connection" and not answer.is_unreached):
                return answer
            await asyncio.sleep(wait_s)
        return await self._exchange_once(path, body, timeout_s)

    async def _exchange_once(self, path: str, body: Mapping[str, JsonValue] | None, timeout_s: float) -> Answer:
        secret = self.address.secret
        try:
            async with self._places, asyncio.timeout(timeout_s):
                answer = await exchange_json(self._client, path, body)
        except Exception as error:  # What the two HTTP clients raise has no base class in common.
            failure = classify_failure(error, secret=secret)
            if failure is None and not isinstance(error, openai.OpenAIError | ValueError):
                raise
            return failure or CallFailure("malformed", "retry", shorten(redact(str(error), secret=secret), 300))
        return {name: mask_all(value, secret=secret) for name, value in answer.items()}


class CompletionsClient:
    """``/v1/completions`` for one model; raises whatever the client library raises."""

    def __init__(self, address: Address, *, timeout_s: float, max_reply_mb: float | None = None) -> None:
        self.name = address.name
        self._client = _open_client(address, timeout_s=timeout_s, max_reply_mb=max_reply_mb)

    async def complete(self, body: Mapping[str, JsonValue], *, path: str = "/completions") -> Mapping[str, Any]:
        """Return the answer to a request, which needs not name the model."""
        return await exchange_json(self._client, path, {"model": self.name, **body})

    async def stream(self, body: Mapping[str, JsonValue]) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the parts of the answer as they come."""
        async with aclosing(stream_json(self._client, "/completions", {"model": self.name, **body})) as parts:
            async for part in parts:
                yield part


async def stream_json(
    client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the parts of the server's answer to a POST request that asks for a stream, as they came.

    Raises:
        MalformedReplyError: a part is no JSON object, or an error of which no status is told.
        ReportedError: a part is an error.
    """
    try:
        parts = await client.post(
            path, cast_to=object, body=dict(body), stream=True, stream_cls=openai.AsyncStream[object]
        )
        async with parts:
            async for part in parts:
                if not isinstance(part, dict):
                    raise MalformedReplyError(f"a part of the server's answer is no object: {str(part)[:MAX_QUOTED]}")
                yield part
    except openai.APIError as error:
        if type(error) is not openai.APIError:
            raise
        # In the middle of a stream, where there is no status.
        status = read_status(error.body)
        if status is None:
            raise MalformedReplyError(f"the server's stream ended in an error: {read_words(error).message}") from error
        raise ReportedError(status, error.body) from error


async def exchange_json(client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the server's answer as it came: to a POST request, or to a GET request where there is no body.

    The client's own methods make objects of each message and of each token's probabilities: most of a call's CPU.

    Raises:
        MalformedReplyError: it is no JSON object.
        ReportedError: it is an error, whatever its status.
    """
    try:
        if body is None:
            answer = await client.get(path, cast_to=object)
        else:
            answer = await client.post(path, cast_to=object, body=dict(body))
    except (ValueError, RecursionError) as error:
        return _read_undecoded(error)
    return _read_decoded(answer)


def exchange_json_blocking(client: openai.OpenAI, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Do the same with a POST request where nobody can await."""
    try:
        answer = client.post(path, cast_to=object, body=dict(body))
    except (ValueError, RecursionError) as error:
        return _read_undecoded(error)
    return _read_decoded(answer)


def _read_undecoded(error: Exception) -> dict[str, Any]:
    if isinstance(error, json.JSONDecodeError):
        # Not what it is declared as: an event stream though none was asked for, a page.
        return _check_reported(read_body(error.doc))
    # Bytes that are no text, a number of 5,000 digits, arrays in arrays in arrays.
    raise MalformedReplyError(f"the server's answer is no JSON: {error}") from error


def _read_decoded(answer: object) -> dict[str, Any]:
    if isinstance(answer, str):
        # Declared as something else: an event stream though none was asked for, or just another kind of text.
        return _check_reported(read_body(answer))
    if not isinstance(answer, dict):
        told = answer[:MAX_QUOTED] if isinstance(answer, list) else answer
        raise MalformedReplyError(f"the server's answer is no JSON object: {str(told)[:MAX_QUOTED]}")
    return _check_reported(answer)


def _check_reported(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer that is no error.

    Raises:
        ReportedError: some gateways answer 200 with an error in the body.
    """
    if answer.get("error") and not answer.get("choices") and (status := read_status(answer)):
        raise ReportedError(status, answer)
    return answer


def limit_time(timeout_s: float) -> openai.Timeout:
    """Return the limits of a request: a host that drops packets is found out soon, however long replies may take."""
    return openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))


def shared_http_client(max_reply_mb: float | None = None) -> HttpClient:
    """Return the running event loop's HTTP client; whoever uses it leaves it open.

    Args:
        max_reply_mb: Longest answer in megabytes, in place of what a request's tokens and samples allow for.
    """
    if max_reply_mb is None:
        client: HttpClient = _http_clients.get().client
        return client
    bounded = _bounded_clients.get()
    if max_reply_mb not in bounded:
        bounded[max_reply_mb] = _open_http_client(max_reply_mb)
    client = bounded[max_reply_mb].client
    return client


@cache
def blocking_http_client() -> openai.DefaultHttpxClient:
    """Return the process's one client for whoever cannot await; certificates take 60 ms to read."""
    options: dict[str, Any] = {"verify": load_certificates(), "headers": {"Accept-Encoding": ENCODINGS}}
    return openai.DefaultHttpxClient(**options, event_hooks={"response": [partial(_check_response, max_reply_mb=None)]})


def _open_client(address: Address, *, timeout_s: float, max_reply_mb: float | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=address.base_url,
        api_key=address.api_key,
        max_retries=0,
        timeout=limit_time(timeout_s),
        http_client=shared_http_client(max_reply_mb),
    )


class _HttpClient(NamedTuple):
    """An HTTP client and the generator that closes it."""

    client: Any
    closer: AsyncGenerator[None]


class _FastHttpClient(openai.DefaultAioHttpClient):
    """aiohttp's client, which leaves to httpx's the servers that it takes for no HTTP: that one reads more.

    A long header, a length that is told twice or bytes behind an answer's end would otherwise fail for good.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tolerant = partial(openai.DefaultAsyncHttpxClient, **options)
        self._tolerant_client: Any = None
        self._odd_places: set[object] = set()

    async def send(self, request: Any, **options: Any) -> Any:
        """Return the response to a request; one that fails here is sent by the other client when it is made again."""
        place = request.url.netloc
        if place in self._odd_places:
            self._tolerant_client = self._tolerant_client or self._tolerant()
            return await self._tolerant_client.send(request, **options)
        try:
            return await super().send(request, **options)
        except Exception as error:
            if is_no_http(error):
                self._odd_places.add(place)
            raise

    async def aclose(self) -> None:
        """Close the connections of both."""
        await super().aclose()
        if self._tolerant_client is not None:
            await self._tolerant_client.aclose()


def _open_http_client(max_reply_mb: float | None = None) -> _HttpClient:
    """Return an HTTP client that is closed when its event loop ends, whoever runs the loop."""

    async def check(response: Any) -> None:
        _check_response(response, max_reply_mb=max_reply_mb)

    options: dict[str, Any] = {
        "verify": load_certificates(),
        "headers": {"Accept-Encoding": ENCODINGS},
        "event_hooks": {"response": [check]},
    }
    try:
        # A third less CPU per call than httpx, which alone speaks to SOCKS proxies.
        client = (openai.DefaultAsyncHttpxClient if uses_socks() else _FastHttpClient)(**options)
    except RuntimeError:  # aiohttp is not installed.
        client = openai.DefaultAsyncHttpxClient(**options)
    closer = _close_at_end(client)
    # A loop that ends finishes the generators begun in it: asyncio.run, pytest-asyncio and uvloop all see to that.
    with suppress(StopIteration):
        closer.asend(None).send(None)
    return _HttpClient(client, closer)


def _check_response(response: Any, *, max_reply_mb: float | None) -> None:
    """Have an answer end where it is too long, and leave a redirect to another host unfollowed."""
    place = response.headers.get("location")
    if place is not None and response.is_redirect and not _is_same_host(response.url, place):
        # Prompts would go where nobody sent them, or nowhere.
        del response.headers["location"]
    bound_body(response, max_reply_mb=max_reply_mb)


def _is_same_host(url: Any, place: str) -> bool:
    try:
        return bool(url.join(place).host == url.host)
    except Exception:  # noqa: BLE001  # Each HTTP client has an error of its own for what is no address.
        return False


async def _close_at_end(client: Any) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await client.aclose()


_http_clients = PerLoop(_open_http_client)
_bounded_clients: PerLoop[dict[float, _HttpClient]] = PerLoop(dict)
"""Those of runs that set a bound, by it."""
