"""One request to ``/v1/embeddings``, carried as any other: its messages are the texts, its choices their vectors.

So a run's embeddings pass through the run's one retry loop, its ledger and its budget, as its model calls do.
"""

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

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
        vectors = read_vectors(answer, num_texts=len(texts))
        check_sizes(vectors)
        return Reply(tuple(Choice(text=write_vector(one)) for one in vectors), read_usage(answer.get("usage")))


def is_usable(vector: Sequence[object]) -> bool:
    """Return whether a vector has a direction: finite numbers alone, not all of them 0."""
    numbers = [one for one in vector if isinstance(one, int | float) and abs(one) <= sys.float_info.max]
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


def read_vectors(answer: Mapping[str, Any], *, num_texts: int) -> list[list[float]]:
    """Return the vectors in an answer, in the order of the texts.

    Raises:
        MalformedReplyError: there is not one of usable numbers for each text.
    """
    entries = answer.get("data")
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        # Some gateways answer 200 with an error in the body.
        raise MalformedReplyError(f"the server's answer holds no embeddings: {str(answer)[:MAX_QUOTED]}")
    entries = _in_order(entries)
    vectors = [entry.get("embedding") for entry in entries]
    usable = [one for one in vectors if isinstance(one, list) and is_usable(one)]
    if not len(usable) == len(vectors) == num_texts:
        raise MalformedReplyError(
            f"{num_texts} texts got {len(vectors)} vectors, or one that is empty, or holds what is no number or "
            "nothing but zeros"
        )
    return [[float(number) for number in vector] for vector in usable]


def _in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an answer's entries in the order of the texts: as they came, unless their places tell another.

    Raises:
        MalformedReplyError: they tell none, but that it is not this one.
    """
    told = [place for entry in entries if isinstance(place := entry.get("index"), int)]
    if all(one < two for one, two in pairwise(told)):
        return entries
    if sorted(told) != list(range(len(entries))):
        raise MalformedReplyError(f"the vectors of {len(entries)} texts have the places {str(told)[:80]}")
    return sorted(entries, key=lambda entry: int(entry["index"]))


def check_sizes(vectors: Sequence[Sequence[float]]) -> None:
    """Do nothing where all vectors have as many numbers.

    Raises:
        MalformedReplyError: they have not.
    """
    if len(sizes := {len(vector) for vector in vectors}) > 1:
        raise MalformedReplyError(f"the vectors have different sizes: {sorted(sizes)}")
