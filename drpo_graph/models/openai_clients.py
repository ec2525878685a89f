"""Clients of OpenAI-compatible servers, which lose nothing of a reply, on one HTTP client per event loop.

Imported on first use, because ``langchain_openai`` takes two seconds.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import JsonValue, SecretStr

from drpo_graph.models.failures import MAX_QUOTED, MalformedReplyError
from drpo_graph.models.transport import Complete, CompleteStream, PerLoop

_CONNECT_TIMEOUT_S = 15.0


class _LossLessChatOpenAI(ChatOpenAI):
    """Keeps every choice's refusal and tool arguments.

    LangChain keeps the refusal of the first choice only, and one choice whose tool arguments are no object costs all.
    """

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        own = payload.pop("extra_body", None) or {}
        return self._create_chat_result(await _post(self.root_async_client, "/chat/completions", {**payload, **own}))

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        try:
            if isinstance(response, openai.BaseModel):
                response = response.model_dump(warnings=False)
            refusals = [_flatten(choice["message"]) for choice in response["choices"]]
            result = super()._create_chat_result(response, generation_info)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # Some gateways answer 200 with an error in the body; a proxy may answer with a page.
            raise MalformedReplyError(
                f"the server's answer is no chat completion: {str(response)[:MAX_QUOTED]}"
            ) from error
        for generation, refusal in zip(result.generations, refusals, strict=True):
            if refusal:
                generation.message.additional_kwargs["refusal"] = refusal
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        generation = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
        if generation is not None and isinstance(delta.get("refusal"), str):
            generation.message.additional_kwargs["refusal"] = delta["refusal"]
        return generation


def open_chat(name: str, *, base_url: str, api_key: str, timeout_s: float) -> BaseChatModel:
    """Return a client of ``/v1/chat/completions`` for the running event loop; it retries nothing."""
    return _LossLessChatOpenAI(
        model=name,
        base_url=base_url,
        api_key=SecretStr(api_key),
        max_retries=0,
        timeout=_timeout(timeout_s),
        http_client=_blocking_http_client(),
        http_async_client=_http_clients.get().client,
        use_responses_api=False,
        disable_streaming=True,
    )


def open_completions(name: str, *, base_url: str, api_key: str, timeout_s: float) -> Complete:
    """Return a client of ``/v1/completions`` for the running event loop; it retries nothing."""
    client = _open_client(base_url=base_url, api_key=api_key, timeout_s=timeout_s)

    async def complete(body: Mapping[str, JsonValue]) -> Mapping[str, object]:
        return await _post(client, "/completions", {"model": name, **body})

    return complete


def open_completion_streams(name: str, *, base_url: str, api_key: str, timeout_s: float) -> CompleteStream:
    """Return a client of ``/v1/completions`` whose answers come in parts; it retries nothing."""
    client = _open_client(base_url=base_url, api_key=api_key, timeout_s=timeout_s)

    async def complete(body: Mapping[str, JsonValue]) -> AsyncIterator[Mapping[str, object]]:
        parts = await client.post(
            "/completions",
            cast_to=object,
            body={"model": name, **body},
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        async with parts:
            async for part in parts:
                if not isinstance(part, dict):
                    raise MalformedReplyError(f"a part of the server's answer is no object: {str(part)[:MAX_QUOTED]}")
                yield part

    return complete


def _open_client(*, base_url: str, api_key: str, timeout_s: float) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=api_key,
        max_retries=0,
        timeout=_timeout(timeout_s),
        http_client=_http_clients.get().client,
    )


def without_retries(model: BaseChatModel) -> BaseChatModel:
    """Return a copy of a caller's ``ChatOpenAI`` that neither retries nor streams, on the same HTTP client."""
    if not isinstance(model, BaseChatOpenAI) or not isinstance(model.root_async_client, openai.AsyncOpenAI):
        return model
    client = model.root_async_client.with_options(max_retries=0)
    changes = {"root_async_client": client, "async_client": client.chat.completions, "max_retries": 0}
    return model.model_copy(update={**changes, "disable_streaming": True})


async def _post(client: openai.AsyncOpenAI, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's answer as it came.

    The client's own methods make objects of each message and of each token's probabilities: most of a call's CPU.

    Raises:
        MalformedReplyError: it is no JSON object.
    """
    try:
        answer = await client.post(path, cast_to=object, body=dict(body))
    except json.JSONDecodeError as error:
        raise MalformedReplyError(f"the server's answer is no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise MalformedReplyError(f"the server's answer is no JSON object: {str(answer)[:MAX_QUOTED]}")
    return answer


def shared_http_client() -> openai.DefaultAsyncHttpxClient:
    """Return the running event loop's HTTP client; whoever uses it leaves it open."""
    client: openai.DefaultAsyncHttpxClient = _http_clients.get().client
    return client


class _HttpClient(NamedTuple):
    """An HTTP client and the generator that closes it."""

    client: Any
    closer: AsyncGenerator[None]


def _open_http_client() -> _HttpClient:
    """Return an HTTP client that is closed when its event loop ends, whoever runs the loop."""
    try:
        client = openai.DefaultAioHttpClient()  # A third less CPU per call than httpx.
    except RuntimeError:  # aiohttp is not installed.
        client = openai.DefaultAsyncHttpxClient()
    closer = _close_at_end(client)
    # A loop that ends finishes the generators begun in it: asyncio.run, pytest-asyncio and uvloop all see to that.
    with suppress(StopIteration):
        closer.asend(None).send(None)
    return _HttpClient(client, closer)


async def _close_at_end(client: Any) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await client.aclose()


@cache
def _blocking_http_client() -> Any:
    """Return what LangChain wants beside the asynchronous client; nothing is sent through it.

    One for all: without, each model would read the certificates again, 60 ms apiece.
    """
    return openai.DefaultHttpxClient()


_http_clients = PerLoop(_open_http_client)


def _timeout(timeout_s: float) -> openai.Timeout:
    # A host that drops packets is found out soon, however long its replies may take.
    return openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))


def _flatten(message: dict[str, Any]) -> str | None:
    """Make a tool call's arguments the message's text, and return its refusal."""
    calls = message.pop("tool_calls", None)
    if calls:
        message["content"] = calls[0]["function"]["arguments"]
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else None
