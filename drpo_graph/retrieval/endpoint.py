"""Embeddings of an OpenAI-compatible ``/v1/embeddings``, through LangChain's client, which is imported on first use."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings
from pydantic import SecretStr

from drpo_graph.errors import EmbeddingsError
from drpo_graph.models.capabilities import Address
from drpo_graph.models.embedding import EMBEDDING_CALLER, is_usable
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.safety.redaction import redact

if TYPE_CHECKING:
    import openai
    from langchain_openai import OpenAIEmbeddings

_TIMEOUT_S = 60.0
_MAX_RETRIES = 2
_MAX_QUOTED = 300
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What LangChain's client raises on an answer that holds no embeddings."""


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
        with self._explaining():
            return _check(self._blocking_client.embed_documents(texts), num_texts=len(texts))

    def embed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings.

        Raises:
            EmbeddingsError: the endpoint cannot be used.
        """
        caller = EMBEDDING_CALLER.get()
        if caller is not None:
            return await caller.embed(self._address, texts)
        with self._explaining():
            return _check(await self._clients.get().aembed_documents(texts), num_texts=len(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        return (await self.aembed_documents([text]))[0]

    @cached_property
    def _blocking_client(self) -> "OpenAIEmbeddings":
        return self._open(None)

    def _open_in_loop(self) -> "OpenAIEmbeddings":
        from drpo_graph.models.http_json import shared_http_client  # Two seconds to import.

        return self._open(shared_http_client())

    def _open(self, http_client: "openai.DefaultAsyncHttpxClient | None") -> "OpenAIEmbeddings":
        from langchain_openai import OpenAIEmbeddings

        return OpenAIEmbeddings(
            model=self._address.name,
            openai_api_base=self._address.base_url,
            openai_api_key=SecretStr(self._address.api_key),
            # Texts as they are: tokens of OpenAI's own would mean nothing to another server.
            check_embedding_ctx_length=False,
            max_retries=_MAX_RETRIES,
            request_timeout=_TIMEOUT_S,
            http_async_client=http_client,
        )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say, where the endpoint cannot be used, what to do."""
        import openai

        try:
            yield
        except (openai.OpenAIError, *_MALFORMED) as error:
            reason = redact(str(error), secret=self._address.secret)
            raise EmbeddingsError(
                f"The embeddings model {self._address.name!r} at {self._address.place} cannot be used: "
                f"{type(error).__name__}: {reason[:_MAX_QUOTED]} Check the key and the address (--embeddings-base-url "
                "URL; for a run that is resumed, --set embeddings_base_url=URL), or start the server, then try again."
            ) from error


def _check(vectors: list[list[float]], *, num_texts: int) -> list[list[float]]:
    sizes = {len(vector) for vector in vectors}
    if len(vectors) != num_texts or len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"{num_texts} texts got {len(vectors)} vectors of sizes {sorted(sizes)}")
    if not all(map(is_usable, vectors)):
        raise ValueError("a vector holds what is no number, or nothing but zeros")
    return vectors
