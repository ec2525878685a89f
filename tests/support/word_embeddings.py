"""Embeddings that know words and nothing else: counts of words and of words in a row, by their hashes."""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from langchain_core.embeddings import Embeddings

SIZE = 1024
_WORD = re.compile(r"\w+")


class WordEmbeddings(Embeddings):
    """A bag of words: texts are alike as far as they have the same words, and the same ``longest`` words in a row."""

    def __init__(self, longest: int = 3) -> None:
        self._longest = longest

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings, of length 1."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a text's embedding, of length 1."""
        return list(_embed(text, self._longest))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings; no thread is worth it."""
        return self.embed_documents(texts)


@lru_cache(maxsize=4096)
def _embed(text: str, longest: int) -> tuple[float, ...]:
    counts = np.zeros(SIZE)
    counts[0] = 1.0  # A text without a word has a direction too.
    for phrase in _phrases(text, longest):
        digest = hashlib.sha256(phrase.encode("utf-8", "replace")).digest()
        counts[int.from_bytes(digest[:4], "big") % SIZE] += 1.0 if digest[4] & 1 else -1.0
    length = float(np.linalg.norm(counts))
    return tuple(float(one) / (length or 1.0) for one in counts)


def _phrases(text: str, longest: int) -> Iterator[str]:
    words = _WORD.findall(text.lower())
    for size in range(1, longest + 1):
        for start in range(len(words) - size + 1):
            yield " ".join(words[start : start + size])
