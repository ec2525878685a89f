"""LangChain's chat model of OpenAI-compatible servers, made to lose nothing of a reply.

Imported on first use, because ``langchain_openai`` takes two seconds.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import SecretStr

from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MAX_QUOTED, MalformedReplyError
from drpo_graph.models.http_json import blocking_http_client, exchange_json, limit_time, shared_http_client, stream_json
from drpo_graph.models.usage import UNTRUE_USAGE, clean_usage, is_untrue


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
        answer = await exchange_json(self.root_async_client, "/chat/completions", {**payload, **own})
        return self._create_chat_result(answer)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        """Yield the parts as they came: the client's own objects warn of each odd one, on the standard error."""
        if self._should_stream_usage(stream_usage, **kwargs):
            kwargs["stream_options"] = {"include_usage": True}
        payload = self._get_request_payload(messages, stop=stop, stream=True, **kwargs)
        own = payload.pop("extra_body", None) or {}
        async with aclosing(stream_json(self.root_async_client, "/chat/completions", {**payload, **own})) as parts:
            async for part in parts:
                if (generation := self._convert_chunk_to_generation_chunk(part, AIMessageChunk, {})) is not None:
                    yield generation

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        try:
            if isinstance(response, openai.BaseModel):
                response = response.model_dump(warnings=False)
            told = response.get("usage")
            response = {**response, "usage": clean_usage(told)}
            refusals = [_flatten(choice["message"]) for choice in response["choices"]]
            result = super()._create_chat_result(response, generation_info)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # Some gateways answer 200 with an error in the body; a proxy may answer with a page.
            raise MalformedReplyError(
                f"the server's answer is no chat completion: {str(response)[:MAX_QUOTED]}"
            ) from error
        if is_untrue(told) and result.generations:
            result.generations[0].message.response_metadata[UNTRUE_USAGE] = True
        for generation, refusal in zip(result.generations, refusals, strict=True):
            if refusal:
                generation.message.additional_kwargs["refusal"] = refusal
            # Of several samples LangChain tells no model's name, without which its usage callback counts nothing.
            generation.message.response_metadata.setdefault("model_name", (result.llm_output or {}).get("model_name"))
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
        if delta:
            delta["role"] = "assistant"
        chunk = {**chunk, "usage": clean_usage(chunk.get("usage"))}
        generation = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if generation is not None and isinstance(delta.get("refusal"), str):
            generation.message.additional_kwargs["refusal"] = delta["refusal"]
        return generation


def open_chat(address: Address, *, timeout_s: float, max_reply_mb: float | None = None) -> BaseChatModel:
    """Return a client of ``/v1/chat/completions`` for the running event loop; it retries nothing."""
    return _LossLessChatOpenAI(
        model=address.name,
        base_url=address.base_url,
        api_key=SecretStr(address.api_key),
        max_retries=0,
        timeout=limit_time(timeout_s),
        # LangChain wants it beside the other one; nothing is sent through it.
        http_client=blocking_http_client(),
        http_async_client=shared_http_client(max_reply_mb),
        use_responses_api=False,
        # LangChain's own would answer equal requests alike, and samples are equal requests.
        cache=False,
        disable_streaming=True,
    )


def without_retries(model: BaseChatModel, *, keeps_cache: bool = False) -> BaseChatModel:
    """Return a copy of a caller's ``ChatOpenAI`` that neither retries nor streams, on the same HTTP client.

    Nor does LangChain's cache answer for it, unless it is kept.
    """
    if not keeps_cache:
        model = model.model_copy(update={"cache": False})
    if not isinstance(model, BaseChatOpenAI) or not isinstance(model.root_async_client, openai.AsyncOpenAI):
        return model
    client = model.root_async_client.with_options(max_retries=0)
    changes = {"root_async_client": client, "async_client": client.chat.completions, "max_retries": 0}
    return model.model_copy(update={**changes, "disable_streaming": True})


def _flatten(message: dict[str, Any]) -> str | None:
    """Make a tool call's arguments the message's text, and return its refusal."""
    # Some servers leave the role out, give none, or another name than OpenAI's.
    message["role"] = "assistant"
    calls = message.pop("tool_calls", None)
    if calls:
        message["content"] = calls[0]["function"]["arguments"]
    if isinstance(message.get("content"), dict):
        message["content"] = json.dumps(message["content"], ensure_ascii=False)
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else None
