"""ICL examples: read, embedded, found by likeness to a query."""

from drpo_graph.retrieval.cache import CacheCounts, CachedEmbeddings
from drpo_graph.retrieval.embeddings import make_embeddings
from drpo_graph.retrieval.examples import bundled_icl_examples, load_icl_examples
from drpo_graph.retrieval.retriever import EmbeddingRetriever
from drpo_graph.settings.retrieval import DEFAULT_EMBEDDINGS

__all__ = [
    "DEFAULT_EMBEDDINGS",
    "CacheCounts",
    "CachedEmbeddings",
    "EmbeddingRetriever",
    "bundled_icl_examples",
    "load_icl_examples",
    "make_embeddings",
]
