"""Find the ICL examples that are nearest to a query, with LangChain's vector store and example selector."""

import asyncio
import weakref
from collections.abc import Sequence
from typing import ClassVar

from langchain_core.embeddings import Embeddings
from langchain_core.example_selectors import SemanticSimilarityExampleSelector
from langchain_core.vectorstores import InMemoryVectorStore

from drpo_graph.records import ICLExample

_QUERY = "query"


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
        self._store = InMemoryVectorStore(embeddings)
        self._is_filled = False
        # A lock belongs to its event loop, and one retriever may serve several.
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    @property
    def examples(self) -> tuple[ICLExample, ...]:
        """What can be found."""
        return self._examples

    async def retrieve(self, query: str, *, k: int) -> Sequence[ICLExample]:
        """Return the ``k`` nearest examples, the nearest first, or all where there are fewer."""
        if k < 1 or not self._examples:
            return ()
        await self._fill()
        selector = SemanticSimilarityExampleSelector(vectorstore=self._store, k=k, input_keys=[_QUERY])
        found = await selector.aselect_examples({_QUERY: query})
        return tuple(ICLExample.model_validate(example) for example in found)

    async def _fill(self) -> None:
        """Embed the examples, once for all who ask."""
        if self._is_filled:
            return
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if not self._is_filled:
                await self._store.aadd_texts(
                    [example.query for example in self._examples],
                    [example.model_dump() for example in self._examples],
                    # Ids of our own: two loops that fill at once put the same in twice.
                    ids=[str(place) for place in range(len(self._examples))],
                )
                self._is_filled = True
