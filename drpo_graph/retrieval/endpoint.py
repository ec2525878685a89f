"""Embeddings of an OpenAI-compatible ``/v1/embeddings``, through its client library, which is imported on first use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

from langchain_core.embeddings import Embeddings

from drpo_graph.errors import EmbeddingsError
from drpo_graph.models.capabilities import Address
from drpo_graph.models.embedding import EMBEDDING_CALLER, check_sizes, read_vectors
from drpo_graph.models.failures import classify_failure
from drpo_graph.models.per_loop import PerLoop

if TYPE_CHECKING:
    import openai

_TIMEOUT_S = 60.0
_MAX_RETRIES = 2
_MAX_TEXTS = 64
"""In one request: how long its answer may be follows from their number."""


class _Options(TypedDict):
    """What all clients are opened with."""

    base_url: str
    api_key: str
    max_retries: int
    timeout: float


class EndpointEmbeddings(Embeddings):
    """Embeds texts at an endpoint, for a run as calls of its own; says what to do when it cannot be used."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._clients = PerLoop(self._open_in_loop)

    @property
    def base_url(self) -> str:
        """Where the texts go to be embedded."""
        return self._address.base_url

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings.

        Raises:
            EmbeddingsError: the endpoint cannot be used.
        """
        from drpo_graph.models.http_json import exchange_json_blocking

        vectors: list[list[float]] = []
        with self._explaining():
            for some in _batch(texts):
                answer = exchange_json_blocking(self._blocking_client, "/embeddings", self._body_of(some))
                vectors += read_vectors(answer, num_texts=len(some))
            check_sizes(vectors)
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings.

        Raises:
            EmbeddingsError: the endpoint cannot be used.
        """
        from drpo_graph.models.http_json import exchange_json

        caller = EMBEDDING_CALLER.get()
        if caller is not None:
            return await caller.embed(self._address, texts)
        vectors: list[list[float]] = []
        with self._explaining():
            for some in _batch(texts):
                answer = await exchange_json(self._clients.get(), "/embeddings", self._body_of(some))
                vectors += read_vectors(answer, num_texts=len(some))
            check_sizes(vectors)
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        return (await self.aembed_documents([text]))[0]

    @cached_property
    def _blocking_client(self) -> "openai.OpenAI":
        import openai

        from drpo_graph.models.http_json import blocking_http_client

        return openai.OpenAI(**self._options, http_client=blocking_http_client())

    def _open_in_loop(self) -> "openai.AsyncOpenAI":
        import openai  # Two seconds to import.

        from drpo_graph.models.http_json import shared_http_client

        return openai.AsyncOpenAI(**self._options, http_client=shared_http_client())

    @property
    def _options(self) -> "_Options":
        return {
            "base_url": self._address.base_url,
            "api_key": self._address.api_key,
            "max_retries": _MAX_RETRIES,
            "timeout": _TIMEOUT_S,
        }

    def _body_of(self, texts: Sequence[str]) -> dict[str, object]:
        return {"model": self._address.name, "input": list(texts)}

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say, where the endpoint cannot be used, what to do."""
        try:
            yield
        except Exception as error:  # What the two HTTP clients raise has no base class in common.
            failure = classify_failure(error, secret=self._address.secret)
            if failure is None:
                raise
            raise EmbeddingsError(
                f"The embeddings model {self._address.name!r} at {self._address.place} cannot be used "
                f"({failure.kind}): {failure.message.rstrip('.')}. Check the key and the address "
                "(--embeddings-base-url URL; for a run that is resumed, --set embeddings_base_url=URL), or start the "
                "server, then try again."
            ) from error


def _batch(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _MAX_TEXTS):
        yield texts[start : start + _MAX_TEXTS]
