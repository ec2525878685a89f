"""From a run's settings to its retriever."""

from drpo_graph.records import ICLExample
from drpo_graph.retrieval.cache import CachedEmbeddings
from drpo_graph.retrieval.embeddings import make_embeddings
from drpo_graph.retrieval.examples import bundled_icl_examples, load_icl_examples
from drpo_graph.retrieval.local import MiniLMEmbeddings
from drpo_graph.retrieval.retriever import EmbeddingRetriever
from drpo_graph.settings.retrieval import RetrievalSettings


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
