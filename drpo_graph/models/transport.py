"""One request to one model: chat through LangChain, completions as they are. No retries here."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import JsonValue, ValidationError

from drpo_graph.models.bound import other_bound, with_bound
from drpo_graph.models.failures import MalformedReplyError, refuses_streams
from drpo_graph.models.replies import read_completion, read_part, read_result
from drpo_graph.models.request import Piece, Reply, Request
from drpo_graph.models.stops import cut_at_stops, end_at_stops
from drpo_graph.models.terms import LIMIT_FIELDS, Terms
from drpo_graph.models.tracing import ToldCompletion, find_listeners
from drpo_graph.models.usage import usage_in
from drpo_graph.prompts.flat import join_messages
from drpo_graph.prompts.library import Message

if TYPE_CHECKING:
    from drpo_graph.models.http_json import CompletionsClient

_LIMIT_FIELDS = ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict", "max_new_tokens")
"""What providers' chat models call the most tokens of a reply."""

_UNREADABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a client raises that takes a stream's odd parts for good ones."""

_NO_CHUNKS = "No generation chunks were returned"
"""What LangChain says of a stream without any event."""

_PIECES_PER_TOKEN, _FREE_PIECES = 4, 1000
"""How many pieces a stream may have: LangChain keeps each one until its end, kilobytes for every byte."""

_MESSAGE_TYPES: Mapping[str, type[BaseMessage]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}


class Transport(Protocol):
    """Sends one request; raises whatever the client library raises."""

    async def send(self, request: Request) -> Reply:
        """Return the reply to one request."""
        ...


@runtime_checkable
class StreamingTransport(Protocol):
    """Sends one request and hands the reply on as it comes; raises whatever the client library raises."""

    def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Yield the pieces of the reply's one sample."""
        ...


class OpenAITransport:
    """An OpenAI-compatible server: each request goes to the endpoint that it names.

    Completions do not go through LangChain, which drops how much of a prompt the server had in its cache.

    Args:
        chat: Returns the running event loop's client of ``/v1/chat/completions``; called on the first request for it.
        completions: The same for ``/v1/completions``; without it, everything goes to the chat.
        bound: What a caller has bound to the chat model.
    """

    def __init__(
        self,
        chat: Callable[[], BaseChatModel],
        completions: "Callable[[], CompletionsClient] | None" = None,
        *,
        bound: Mapping[str, Any] | None = None,
    ) -> None:
        self._chat = chat
        self._bound = bound or {}
        self._completions = completions

    async def send(self, request: Request) -> Reply:
        """Return all samples of one request."""
        request = with_bound(request, self._bound)
        if request.endpoint == "completions" and self._completions is not None:
            reply = await _complete(self._completions(), request)
        else:
            reply = await _send_chat(without_refused(self._chat(), request.terms), request, self._options(request))
        return cut_at_stops(reply, _own_stops(request))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Yield the pieces of the reply's one sample.

        Raises:
            MalformedReplyError: the stream ended before the reply did.
        """
        piece, is_ended, num_left = None, False, _FREE_PIECES + _PIECES_PER_TOKEN * request.max_tokens
        try:
            async with aclosing(cast(Any, self._open_stream(request))) as pieces:
                async for piece in pieces:
                    is_ended |= piece.finish_reason is not None
                    num_left -= 1
                    if num_left < 0:
                        raise MalformedReplyError(
                            f"the server's stream does not end at max_tokens={request.max_tokens}"
                        )
                    yield piece
        except _UNREADABLE as error:
            if str(error) != _NO_CHUNKS:
                raise MalformedReplyError(f"the server's stream cannot be read: {error}") from error
        except Exception as error:
            if piece is not None or not refuses_streams(error):
                raise
        if piece is None:
            # No event at all: a server that does not stream or says so, or a page, which the plain request tells of.
            reply = await self.send(request)
            for one in reply.choices[:1]:
                yield Piece(one.text, one.refusal or "", one.finish_reason, reply.usage)
        elif not is_ended:
            raise MalformedReplyError("the server's stream ended before its reply did: no finish reason")

    def _open_stream(self, request: Request) -> AsyncIterator[Piece]:
        request = with_bound(request, self._bound)
        if request.endpoint == "completions" and self._completions is not None:
            return end_at_stops(_stream_completion(self._completions(), request), _own_stops(request))
        has_usage = "stream_options" not in request.terms.dropped
        changes = {"disable_streaming": False, "stream_usage": has_usage}
        model = without_refused(self._chat(), request.terms).model_copy(update=changes)
        return end_at_stops(_stream_chat(model, request, self._options(request)), _own_stops(request))

    def _options(self, request: Request) -> dict[str, Any]:
        options, bound = _chat_options(request), other_bound(request, self._bound)
        if body := {**bound.pop("extra_body", {}), **options.pop("extra_body", {})}:
            options["extra_body"] = body
        return {**bound, **options}


class LangChainTransport:
    """Any ``BaseChatModel``, one sample per request: other providers ignore ``n`` or give it other names.

    Where the model has fields for them, its temperature and ``top_p`` are the request's, and a reply is no longer than
    the request allows, and than that field says.

    Args:
        model: The model.
        bound: What a caller has bound to it.
        keeps_cache: Whether LangChain's cache may answer in its place: it takes equal requests for one, and samples are
            equal requests.
    """

    def __init__(
        self, model: BaseChatModel, *, bound: Mapping[str, Any] | None = None, keeps_cache: bool = False
    ) -> None:
        self._keeps_cache = keeps_cache
        self._model = model
        self._bound = bound or {}
        self._sampling_fields = [name for name in ("temperature", "top_p") if name in type(model).model_fields]
        self._limit_field = next((name for name in _LIMIT_FIELDS if name in type(model).model_fields), None)

    async def send(self, request: Request) -> Reply:
        """Return one sample, whatever the number asked for."""
        request = with_bound(request, self._bound)
        with _reading():
            reply = await _send_chat(self._fit(request), request, self._options(request))
            return cut_at_stops(reply, _own_stops(request))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Yield the pieces of one sample, as the provider's client cuts them."""
        request = with_bound(request, self._bound)
        chunks = _stream_chat(self._fit(request), request, self._options(request))
        pieces = end_at_stops(chunks, _own_stops(request))
        with _reading():
            async with aclosing(cast(Any, pieces)) as parts:
                async for piece in parts:
                    yield piece

    def _fit(self, request: Request) -> BaseChatModel:
        """Return the model with the request's sampling, and without the fields that are refused."""
        model = without_refused(self._model, request.terms)
        asked = {"temperature": request.temperature, "top_p": request.top_p}
        changes: dict[str, Any] = {
            name: value
            for name, value in asked.items()
            if value is not None and name in self._sampling_fields and name not in request.terms.dropped
        }
        if self._limit_field is not None:
            own = getattr(model, self._limit_field)
            if not (isinstance(own, int) and 0 < own <= request.max_tokens):
                changes[self._limit_field] = request.max_tokens
        if not self._keeps_cache and model.cache is not False and (model.cache or get_llm_cache()) is not None:
            changes["cache"] = False
        return model.model_copy(update=changes) if changes else model

    def _options(self, request: Request) -> dict[str, Any]:
        """Return what is bound and no field of the model takes."""
        taken = {*self._sampling_fields, *(LIMIT_FIELDS if self._limit_field else ()), "stop", *request.terms.dropped}
        return {name: value for name, value in self._bound.items() if name not in taken}


@contextmanager
def _reading() -> Iterator[None]:
    """Take what a client cannot make a reply of for no reply; all else that it raises may be a bug."""
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise MalformedReplyError(f"the client cannot read the server's answer: {error}") from error


def without_refused(model: BaseChatModel, terms: Terms) -> BaseChatModel:
    """Return the model without what it would send of its own of the fields that its server does not get."""
    refused = {*terms.dropped, *(LIMIT_FIELDS if terms.limit_field else ())}
    if not refused:
        return model
    changes: dict[str, Any] = {name: None for name in refused if getattr(model, name, None) is not None}
    own = getattr(model, "model_kwargs", None)
    if isinstance(own, Mapping) and refused & set(own):
        changes["model_kwargs"] = {name: value for name, value in own.items() if name not in refused}
    known = {name: value for name, value in changes.items() if name in type(model).model_fields}
    return model.model_copy(update=known) if known else model


def _stops_sent(request: Request) -> list[str] | None:
    return list(request.stop) if request.stop and "stop" not in request.terms.dropped else None


def _own_stops(request: Request) -> tuple[str, ...]:
    """Return the stops that we see to ourselves, because the server takes none."""
    return () if "stop" not in request.terms.dropped else request.stop


def _to_messages(messages: Sequence[Message]) -> list[BaseMessage]:
    return [_MESSAGE_TYPES[one["role"]](content=one["content"]) for one in messages]


async def _send_chat(model: BaseChatModel, request: Request, options: Mapping[str, Any]) -> Reply:
    # The one LangChain call that keeps all samples of a request.
    told = find_listeners(request.role)
    result = await model.agenerate([_to_messages(request.messages)], stop=_stops_sent(request), **told, **options)
    try:
        return read_result(result)
    except _UNREADABLE as error:
        raise MalformedReplyError(f"the chat model's answer is no reply: {error}") from error


async def _complete(client: "CompletionsClient", request: Request) -> Reply:
    body = _completions_body(request)
    told = await ToldCompletion.begin(request, str(body["prompt"]), model=client.name)
    try:
        reply = read_completion(await client.complete(body))
    except BaseException as error:
        await told.fail(error)
        raise
    await told.end(reply)
    return reply


async def _stream_chat(model: BaseChatModel, request: Request, options: Mapping[str, Any]) -> AsyncIterator[Piece]:
    # Without callbacks: inside a graph the caller's would be told of these pieces beside those that we hand on.
    chunks = model.astream(_to_messages(request.messages), {"callbacks": []}, stop=_stops_sent(request), **options)
    async for chunk in chunks:
        reason = chunk.response_metadata.get("finish_reason") or chunk.response_metadata.get("stop_reason")
        refusal = chunk.additional_kwargs.get("refusal")
        yield Piece(
            # A plain text: LangChain's own kind is refused by records.
            str(chunk.text),
            refusal=refusal if isinstance(refusal, str) else "",
            finish_reason=str(reason) if reason else None,
            usage=None if chunk.usage_metadata is None else usage_in(chunk),
        )


async def _stream_completion(client: "CompletionsClient", request: Request) -> AsyncIterator[Piece]:
    body: dict[str, JsonValue] = {"stream": True, "stream_options": {"include_usage": True}}
    async for part in client.stream({**_completions_body(request), **body}):
        yield read_part(part)


def _chat_options(request: Request) -> dict[str, Any]:
    body = {**request.extra_body, **_format_fields(request)}
    fields = request.terms.apply(_sampling_fields(request))
    if request.terms.limit_field is not None:
        # LangChain would give it the name that it has at OpenAI.
        body[request.terms.limit_field] = fields.pop(request.terms.limit_field)
    options: dict[str, Any] = {**fields, **_tool_options(request)}
    if request.top_logprobs:
        options |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if body:
        # Inside extra_body, or LangChain parses the reply itself and one truncated sample loses them all.
        options["extra_body"] = body
    return options


def _completions_body(request: Request) -> dict[str, JsonValue]:
    prompt = join_messages(request.messages, is_structured=request.schema is not None)
    # Whatever the chat calls it: here the limit has one name.
    terms = request.terms.model_copy(update={"limit_field": None})
    body: dict[str, JsonValue] = {"prompt": prompt, **terms.apply(_sampling_fields(request))}
    if (stops := _stops_sent(request)) is not None:
        body["stop"] = list(stops)
    if request.top_logprobs:
        body["logprobs"] = request.top_logprobs
    return {**body, **request.extra_body, **_format_fields(request)}


def _sampling_fields(request: Request) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {
        "n": request.num_samples,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "reasoning_effort": request.reasoning_effort,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _format_fields(request: Request) -> dict[str, JsonValue]:
    if request.schema is None or request.mode not in ("json_schema", "json"):
        return {}
    if request.mode == "json":
        return {"response_format": {"type": "json_object"}}
    schema: JsonValue = {"name": request.schema.name, "schema": dict(request.schema.schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool_options(request: Request) -> dict[str, Any]:
    if request.schema is None or request.mode != "tool":
        return {}
    function = {"name": request.schema.name, "parameters": dict(request.schema.schema)}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": request.schema.name}},
    }
