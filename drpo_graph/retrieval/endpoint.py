"""Embeddings of an OpenAI-compatible ``/v1/embeddings``, through its client library, which is imported on first use."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.embeddings import Embeddings
from pydantic import SecretStr

from drpo_graph.errors import EmbeddingsError
from drpo_graph.models.failures import MalformedReplyError, classify_failure
from drpo_graph.models.per_loop import PerLoop
from drpo_graph.retrieval.cache import is_usable

if TYPE_CHECKING:
    import openai

_TIMEOUT_S = 60.0
_MAX_RETRIES = 2
_MAX_TEXTS = 64
"""In one request: how long its answer may be follows from their number."""
_MAX_QUOTED = 300


class _Options(TypedDict):
    """What all clients are opened with."""

    base_url: str
    api_key: str
    max_retries: int
    timeout: float


class EndpointEmbeddings(Embeddings):
    """Embeds texts at an endpoint, and says what to do when it cannot be used."""

    def __init__(self, name: str, *, base_url: str, api_key: str) -> None:
        self._name, self._base_url, self._api_key = name, base_url, SecretStr(api_key)
        self._clients = PerLoop(self._open_in_loop)

    @property
    def base_url(self) -> str:
        """Where the texts go to be embedded."""
        return self._base_url

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
                vectors += _read_vectors(answer, num_texts=len(some))
            _check_sizes(vectors)
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

        vectors: list[list[float]] = []
        with self._explaining():
            for some in _batch(texts):
                answer = await exchange_json(self._clients.get(), "/embeddings", self._body_of(some))
                vectors += _read_vectors(answer, num_texts=len(some))
            _check_sizes(vectors)
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
            "base_url": self._base_url,
            "api_key": self._api_key.get_secret_value(),
            "max_retries": _MAX_RETRIES,
            "timeout": _TIMEOUT_S,
        }

    def _body_of(self, texts: Sequence[str]) -> dict[str, object]:
        return {"model": self._name, "input": list(texts)}

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say, where the endpoint cannot be used, what to do."""
        try:
            yield
        except Exception as error:  # What the two HTTP clients raise has no base class in common.
            failure = classify_failure(error, secret=self._api_key.get_secret_value())
            if failure is None:
                raise
            raise EmbeddingsError(
                f"The embeddings model {self._name!r} at {self._base_url} cannot be used ({failure.kind}): "
                f"{failure.message.rstrip('.')}. Check the key and the address (--embeddings-base-url URL; for a "
                "run that is resumed, --set embeddings_base_url=URL), or start the server, then try again."
            ) from error


def _batch(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _MAX_TEXTS):
        yield texts[start : start + _MAX_TEXTS]


def _read_vectors(answer: Mapping[str, Any], *, num_texts: int) -> list[list[float]]:
    """Return the vectors in an answer, in the order of the texts.

    Raises:
        MalformedReplyError: there is not one of usable numbers for each text.
    """
    entries = answer.get("data")
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        # Some gateways answer 200 with an error in the body.
        raise MalformedReplyError(f"the server's answer holds no embeddings: {str(answer)[:_MAX_QUOTED]}")
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


def _check_sizes(vectors: Sequence[Sequence[float]]) -> None:
    if len(sizes := {len(vector) for vector in vectors}) > 1:
        raise MalformedReplyError(f"the vectors have different sizes: {sorted(sizes)}")
