"""Find the ICL examples that are nearest to a query, with LangChain's vector store and example selector."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from langchain_core.embeddings import Embeddings
from langchain_core.example_selectors import SemanticSimilarityExampleSelector
from langchain_core.vectorstores import InMemoryVectorStore

from drpo_graph.models.per_loop import PerLoop
from drpo_graph.records import ICLExample
from drpo_graph.retrieval.cache import CachedEmbeddings
from drpo_graph.retrieval.embeddings import make_embeddings
from drpo_graph.retrieval.examples import bundled_icl_examples, load_icl_examples
from drpo_graph.retrieval.local import MiniLMEmbeddings
from drpo_graph.settings.retrieval import RetrievalSettings

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
        self._locks = PerLoop(asyncio.Lock)

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
        async with self._locks.get():
            if not self._is_filled:
                await self._store.aadd_texts(
                    [example.query for example in self._examples],
                    [example.model_dump() for example in self._examples],
                    # Ids of our own: two loops that fill at once put the same in twice.
                    ids=[str(place) for place in range(len(self._examples))],
                )
                self._is_filled = True


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
