"""One request to ``/v1/embeddings``, carried as any other: its messages are the texts, its choices their vectors.

So a run's embeddings pass through the run's one retry loop, its ledger and its budget, as its model calls do.
"""

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Protocol

from drpo_graph.models.capabilities import Address
from drpo_graph.models.failures import MAX_QUOTED, MalformedReplyError
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.models.request import Choice, Reply, Request
from drpo_graph.models.usage import read_usage

if TYPE_CHECKING:
    from drpo_graph.models.http_json import CompletionsClient


class EmbeddingCaller(Protocol):
    """Embeds texts as calls of a run."""

    async def embed(self, address: Address, texts: Sequence[str]) -> list[list[float]]:
        """Return the texts' vectors, from the model at an address or as they were stored."""
        ...


EMBEDDING_CALLER: ContextVar[EmbeddingCaller | None] = ContextVar("embedding_caller", default=None)
"""The run that texts are embedded for; ``None`` outside of runs."""


class EmbeddingTransport:
    """Sends texts to an OpenAI-compatible server."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._clients = PerLoop(partial(_open, address, timeout_s))

    async def send(self, request: Request) -> Reply:
        """Return the texts' vectors, in their order.

        Raises:
            MalformedReplyError: they are not in the answer.
        """
        texts = [one["content"] for one in request.messages]
        answer = await self._clients.get().complete({"input": [*texts]}, path="/embeddings")
        vectors = _read_vectors(answer)
        is_whole = len(vectors) == len(texts) and len({len(one) for one in vectors}) == 1
        if not is_whole or not all(map(is_usable, vectors)):
            raise MalformedReplyError(f"{len(texts)} texts got no vectors that can be used: {str(answer)[:MAX_QUOTED]}")
        return Reply(tuple(Choice(text=write_vector(one)) for one in vectors), read_usage(answer.get("usage")))


def is_usable(vector: Sequence[object]) -> bool:
    """Return whether a vector has a direction: finite numbers alone, not all of them 0."""
    numbers = [one for one in vector if isinstance(one, int | float) and math.isfinite(one)]
    return len(numbers) == len(vector) and any(numbers)


def write_vector(vector: Sequence[float]) -> str:
    """Return a vector as a text, at the precision that models have."""
    return base64.b64encode(array("f", vector).tobytes()).decode()


def read_vector(text: str) -> list[float]:
    """Return the vector that :func:`write_vector` wrote."""
    return array("f", base64.b64decode(text)).tolist()


def _open(address: Address, timeout_s: float) -> "CompletionsClient":
    from drpo_graph.models.http_json import CompletionsClient  # Two seconds to import.

    return CompletionsClient(address, timeout_s=timeout_s)


def _read_vectors(answer: Mapping[str, object]) -> list[list[float]]:
    entries = answer.get("data")
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        return []
    # In the order of the texts, should a server answer in another one.
    ordered = sorted(enumerate(entries), key=lambda each: each[1].get("index", each[0]))
    vectors = [one.get("embedding") for _, one in ordered]
    return [one for one in vectors if isinstance(one, list)]
