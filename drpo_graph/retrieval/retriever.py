"""Find the ICL examples that are nearest to a query."""

import asyncio
import math
import sys
from array import array
from collections.abc import Sequence
from heapq import nlargest
from typing import ClassVar

from langchain_core.embeddings import Embeddings

from drpo_graph.models.per_loop import PerLoop
from drpo_graph.records import ICLExample
from drpo_graph.retrieval.cache import CachedEmbeddings
from drpo_graph.retrieval.embeddings import make_embeddings
from drpo_graph.retrieval.examples import bundled_icl_examples, load_icl_examples
from drpo_graph.retrieval.local import MiniLMEmbeddings
from drpo_graph.settings.retrieval import RetrievalSettings

if sys.version_info >= (3, 12):
    from math import sumprod
else:

    def sumprod(one: Sequence[float], other: Sequence[float]) -> float:
        """Return the sum of the products of two vectors' numbers."""
        return sum(a * b for a, b in zip(one, other, strict=True))


class EmbeddingRetriever:
    """Finds examples by the cosine of their queries' embeddings; implements ``ExampleRetriever``.

    The examples are embedded once, when the first query comes.

    Args:
        examples: What can be found.
        embeddings: Any of LangChain's; :class:`~drpo_graph.retrieval.CachedEmbeddings` keeps what they return.
    """

    STORED_NAME: ClassVar[str] = "drpo_graph.retrieval.retriever.EmbeddingRetriever"

    def __init__(self, examples: Sequence[ICLExample], embeddings: Embeddings) -> None:
        self._examples = tuple(examples)
        self._embeddings = embeddings
        self._directions: list[array[float]] | None = None
        # A lock belongs to its event loop, and one retriever may serve several.
        self._locks = PerLoop(asyncio.Lock)

    @property
    def examples(self) -> tuple[ICLExample, ...]:
        """What can be found."""
        return self._examples

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        """Return the ``k`` nearest examples, the nearest first, or all where there are fewer."""
        if k < 1 or not self._examples:
            return ()
        directions = await self._fill()
        asked = await self._embeddings.aembed_query(query)
        # The query's length changes no order. LangChain's vector store would do the same with numpy, which is 66 MB.
        likeness = [sumprod(one, asked) for one in directions]
        return tuple(self._examples[place] for place in nlargest(k, range(len(likeness)), key=likeness.__getitem__))

    async def _fill(self) -> "list[array[float]]":
        """Return the directions of the examples' vectors: they are embedded once, for all who ask."""
        if self._directions is None:
            async with self._locks.get():
                if self._directions is None:
                    vectors = await self._embeddings.aembed_documents([example.query for example in self._examples])
                    self._directions = [_direction_of(one) for one in vectors]
        return self._directions


def _direction_of(vector: Sequence[float]) -> "array[float]":
    """Return the vector at length 1; one of length 0, or with a number that is none, is like no other."""
    length = math.hypot(*vector)
    return array("d", (one / length for one in vector) if 0 < length < math.inf else [0.0] * len(vector))


def read_icl_examples(settings: RetrievalSettings) -> tuple[ICLExample, ...]:
    """Return the examples that settings name, or the bundled ones.

    Raises:
        DatasetError: the file cannot be used.
    """
    return bundled_icl_examples() if settings.icl_examples is None else load_icl_examples(settings.icl_examples)


def open_retriever(settings: RetrievalSettings) -> EmbeddingRetriever | None:
    """Return what finds the examples of a run, or ``None`` when it shows none. Nothing is embedded yet.

    Raises:
        UsageError: the examples, the embeddings or their cache cannot be used.
    """
    if not settings.ret_icl:
        return None
    examples = read_icl_examples(settings)
    embeddings = make_embeddings(
        settings.embeddings, base_url=settings.embeddings_base_url, api_key_env=settings.embeddings_api_key_env
    )
    if isinstance(embeddings, MiniLMEmbeddings):
        embeddings.check_installed()
    cached = CachedEmbeddings(embeddings, model=settings.embeddings, file=settings.embeddings_cache)
    return EmbeddingRetriever(examples, cached)
