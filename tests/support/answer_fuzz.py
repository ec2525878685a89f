"""Odd answers to every kind of request that a run makes, one after the other: each ends as a run knows to end it."""

import importlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast
from unittest.mock import patch

import openai

from drpo_graph.calls.ladder import Sample
from drpo_graph.errors import DRPOError
from drpo_graph.models import http_json
from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MalformedReplyError, classify_failure
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.probing.probe import probe_endpoint
from drpo_graph.models.probing.survey import Wanted, survey
from drpo_graph.models.request import Choice as ServerChoice
from drpo_graph.models.request import ReplySchema, Request
from drpo_graph.models.transport import StreamingTransport
from drpo_graph.prompts.library import Message
from drpo_graph.records import MAX_SCORE
from drpo_graph.retrieval.endpoint import EndpointEmbeddings
from tests.support.fake_replies import Choice, chat_completion, completion, parse_object
from tests.support.fake_streams import parts_of
from tests.support.odd_answers import mutate
from tests.support.roles import SCORE_SCHEMA, Desk, open_desk, parse_answer

_http = importlib.import_module(
    next(
        kind.__module__ for kind in openai.DefaultAsyncHttpxClient.__mro__ if kind.__name__ == "AsyncClient"
    ).partition(".")[0]
)
"""What OpenAI's client is built on: httpx, or its successor."""

URL = "http://fuzzed.invalid/v1"
SCORE = '{"score": 4}'
Spoil = Callable[[Mapping[str, Any]], bytes]
Ask = Callable[[Desk, str], Awaitable[str]]


class OddServer:
    """Answers properly, but for what ``spoil`` makes of the next answer, or of all."""

    def __init__(self) -> None:
        self.spoil: Spoil | None = None
        self.is_lasting = False
        self.num_requests = 0

    def __call__(self, request: Any) -> Any:
        """Return the answer to one request."""
        body = parse_object(request.content) or {}
        answer = _answer(request.url.path, body)
        self.num_requests += 1
        spoil = self.spoil
        if not self.is_lasting:
            self.spoil = None
        if not body.get("stream"):
            raw = json.dumps(answer).encode() if spoil is None else spoil(answer)
            return _http.Response(200, content=raw, headers={"content-type": "application/json"})
        parts = list(parts_of(answer))
        at = len(parts) // 3
        lines = [json.dumps(part).encode() for part in parts]
        if spoil is not None:
            lines[at] = spoil(parts[at])
        events = b"".join(b"data: %b\n\n" % line for line in [*lines, b"[DONE]"])
        return _http.Response(200, content=events, headers={"content-type": "text/event-stream"})


def _answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
    match path.rpartition("/v1")[2]:
        case "/chat/completions":
            tool = SCORE if body.get("tools") else None
            said = [Choice(SCORE, arguments=tool, probabilities={10: {"4": 0.7, "5": 0.3}})] * (body.get("n") or 1)
            return chat_completion(body, said, key="0" * 24)
        case "/completions":
            said = [Choice(SCORE, probabilities={10: {"4": 0.7, "5": 0.3}})] * (body.get("n") or 1)
            return completion(body, said, key="0" * 24)
        case "/embeddings":
            vectors = [
                {"object": "embedding", "index": at, "embedding": [0.6, 0.8]} for at in range(len(body["input"]))
            ]
            usage = {"prompt_tokens": 2, "total_tokens": 2}
            return {"object": "list", "model": body["model"], "data": vectors, "usage": usage}
        case _:
            model = {"id": "m", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}
            return {"object": "list", "data": [model], "version": "0.1", "default_generation_settings": {"n_ctx": 4096}}


def _question(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _tell(samples: list[Sample[Any]]) -> str:
    for sample in samples:
        assert sample.failure is None or sample.failure.kind
        assert sample.value is None or isinstance(sample.value, str) or 1 <= sample.value <= MAX_SCORE
        # As the archive stores it.
        json.dumps(sample.value, allow_nan=False).encode()
    kinds = {sample.failure.kind for sample in samples if sample.failure}
    return f"no value: {'+'.join(sorted(kinds))}" if kinds else "value"


async def _respond(desk: Desk, text: str) -> str:
    return _tell([await desk.models.base.respond(_question(text))])


def _expect(score: float, choice: ServerChoice) -> float:
    """Return the mean score that the first digit's probabilities tell, where any were told."""
    for token in choice.score_tokens[:1]:
        return sum(value * share for value, share in enumerate(token.probabilities, 1))
    return score


def _ask(schema: ReplySchema | None, *, num_samples: int, is_soft: bool = False) -> Ask:
    async def ask(desk: Desk, text: str) -> str:
        return _tell(
            await desk.models.critic.ask(
                _question(text),
                parse=parse_answer,
                schema=schema,
                num_samples=num_samples,
                soften=_expect if is_soft else None,
            )
        )

    return ask


async def _stream(desk: Desk, text: str) -> str:
    channel = desk.models.base.channel
    transport = cast(StreamingTransport, channel.client.replicas[0].transport)
    request = Request(messages=_question(text), max_tokens=50, endpoint=channel.client.endpoint)
    try:
        said = "".join([piece.text async for piece in transport.stream(request)])
    except Exception as error:  # As the channel, which asks what it means.
        failure = classify_failure(error)
        if failure is None and not isinstance(error, openai.APIError | MalformedReplyError):
            raise
        return f"failed: {failure.kind if failure else 'told in the stream'}"
    said.encode("utf-8", "surrogatepass")
    return "value"


async def _embed(desk: Desk, text: str) -> str:
    vectors = await EndpointEmbeddings(Address(URL, "e", "key")).aembed_documents([text, "b"])
    assert all(len(vector) == len(vectors[0]) for vector in vectors)
    return "value"


async def _look(desk: Desk, text: str) -> str:
    await survey(Address(URL, "m", "key"), identity=text, cache=None, wanted=Wanted(), timeout_s=20)
    return "value"


async def _probe(desk: Desk, text: str) -> str:
    await probe_endpoint(Address(URL, "m", "key"))
    return "value"


ASKS: Mapping[str, tuple[Mapping[str, Any], Ask]] = {
    "chat": ({}, _respond),
    "chat, JSON": ({}, _ask(SCORE_SCHEMA, num_samples=2)),
    "chat, tool": ({"reply_mode": "tool"}, _ask(SCORE_SCHEMA, num_samples=1, is_soft=True)),
    "completions": ({"endpoint": "completions"}, _respond),
    "completions, JSON": ({"endpoint": "completions"}, _ask(SCORE_SCHEMA, num_samples=2, is_soft=True)),
    "chat, streamed": ({}, _stream),
    "completions, streamed": ({"endpoint": "completions"}, _stream),
    "embeddings": ({}, _embed),
    "first look": ({}, _look),
    "probe": ({}, _probe),
}
"""What is asked, with the settings of the roles."""


@asynccontextmanager
async def odd_server() -> AsyncIterator[OddServer]:
    """Have every request of this event loop go to an odd server, without a socket."""
    server = OddServer()
    client = openai.DefaultAsyncHttpxClient(transport=_http.MockTransport(server))
    with patch.object(http_json, "_http_clients", PerLoop(lambda: http_json._HttpClient(client, cast(Any, None)))):
        yield server
    await client.aclose()


async def fuzz(name: str, *, runs: int, seed: int = 0) -> Counter[str]:
    """Ask one thing again and again, the first answer odd each time; return how often it ended how.

    Raises:
        AssertionError: it ended in what no run knows to end with; says with which answer.
    """
    role, ask = ASKS[name]
    ends: Counter[str] = Counter()
    async with odd_server() as server:
        for index in range(runs):
            if index % 200 == 0:
                # Failures in a row are an outage, and many of them end a run: neither is looked at here.
                desk = await open_desk(
                    URL, role=role, retry_wait_s=0.001, max_retries=1, max_reply_attempts=2, max_failure_share=1
                )
            sent: list[bytes] = []
            generator = Random(f"{seed}/{name}/{index}")

            def spoil(answer: Mapping[str, Any], sent: list[bytes] = sent, generator: Random = generator) -> bytes:
                sent.append(mutate(answer, generator))
                return sent[-1]

            server.spoil = spoil
            try:
                ends[await ask(desk, f"question {index}")] += 1
            except DRPOError as error:
                ends[f"told: {type(error).__name__}"] += 1
            except Exception as error:
                raise AssertionError(
                    f"{name}, {index}: {error!r} after {sent[0][:2_000] if sent else b''!r}"
                ) from error
    return ends
