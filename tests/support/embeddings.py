"""Embeddings without a model: vectors that the text decides, counted, here or behind an endpoint."""

import asyncio
import base64
import contextlib
import hashlib
import random
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import web
from langchain_core.embeddings import Embeddings

SIZE = 32


def vector_of(text: str) -> list[float]:
    """Return a text's vector: random numbers that its hash decides."""
    draws = random.Random(hashlib.sha256(text.encode()).digest())
    return [draws.gauss() for _ in range(SIZE)]


@dataclass
class CountingEmbeddings(Embeddings):
    """Remembers every text that it embeds; gives way to other tasks meanwhile, as an endpoint does."""

    queries: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    error: Exception | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += texts
        if self.error is not None:
            raise self.error
        return [vector_of(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries.append(text)
        if self.error is not None:
            raise self.error
        return vector_of(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        return self.embed_query(text)


@dataclass
class EmbeddingsServer:
    """An OpenAI-compatible ``/v1/embeddings``."""

    base_url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    """The texts of all requests that were answered."""
    answer: Callable[[list[str]], web.Response] | None = None
    """Answers in place of the vectors."""
    faults: list[int | str] = field(default_factory=list)
    """What comes of the next requests: a status, ``cut`` for a connection that ends, ``page`` for what is no answer."""

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if self.faults:
            return _fail(request, self.faults.pop(0))
        self.embedded += texts
        if self.answer is not None:
            return self.answer(texts)
        entries = []
        for place, text in enumerate(texts):
            vector: object = vector_of(text)
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(array("f", vector_of(text)).tobytes()).decode()
            entries.append({"object": "embedding", "index": place, "embedding": vector})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response({"object": "list", "data": entries, "model": body["model"], "usage": usage})


def _fail(request: web.Request, fault: int | str) -> web.Response:
    if fault == "page":
        return web.Response(text="<html>", content_type="text/html")
    if fault == "cut":
        assert request.transport is not None
        request.transport.close()
        return web.Response()
    return web.Response(status=int(fault), text="not now", headers={"Retry-After": "0.01"})


@contextlib.asynccontextmanager
async def serve_embeddings(port: int = 0) -> AsyncIterator[EmbeddingsServer]:
    """Serve until the block ends."""
    server = EmbeddingsServer()
    app = web.Application()
    app.router.add_post("/v1/embeddings", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def serve_embeddings_beside() -> Iterator[EmbeddingsServer]:
    """Serve on a thread of this process until the block ends."""
    started, ended = threading.Event(), threading.Event()
    served: list[EmbeddingsServer] = []

    async def live() -> None:
        async with serve_embeddings() as server:
            served.append(server)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield served[0]
    finally:
        ended.set()
        thread.join(10)
