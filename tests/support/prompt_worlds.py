"""Synthetic logs for Prompt-OIRL: queries of two kinds, prompts that suit one of them or neither."""

import hashlib

import numpy as np
from langchain_core.embeddings import Embeddings

from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.features import EmbeddedTexts

SIZE = 8
PROMPTS = ("Count on your fingers.", "Draw a map first.", "Say what you remember.")
"""The first suits sums, the second journeys, the last neither."""


class WorldEmbeddings(Embeddings):
    """Embeds a text by its kind, which its first word tells, and by its own words."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' embeddings."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a text's embedding."""
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
        vector = np.random.default_rng(seed).normal(0, 0.3, SIZE)
        for place, word in enumerate(("Sum", "Journey", "Count", "Draw", "Say")):
            vector[place] += 2.0 * text.startswith(word)
        return [float(one) for one in vector / np.linalg.norm(vector)]


def embed(texts: tuple[str, ...]) -> EmbeddedTexts:
    """Return texts with the world's embeddings."""
    return EmbeddedTexts(texts, np.asarray(WorldEmbeddings().embed_documents(list(texts)), dtype=np.float32))


def make_world(
    num_queries: int = 200,
    *,
    seed: int = 0,
    has_preferences: bool = True,
    test_share: float = 0.0,
    held_out: tuple[str, ...] = (),
) -> Demonstrations:
    """Return one trial of every prompt on every query.

    Args:
        num_queries: Half of each kind.
        seed: Of the outcomes.
        has_preferences: Whether a prompt is right on 9 of 10 queries of its kind; else the first is the best on all.
        test_share: Of the queries, on the test side; no sides when 0.
        held_out: Prompts besides, tried on the test side alone.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number in range(num_queries):
        kind = number % 2
        query = f"{('Sum', 'Journey')[kind]} {number} with {number % 7} steps."
        is_test = number < num_queries * test_share
        for place, prompt in enumerate((*PROMPTS, *held_out)):
            if prompt in held_out and not is_test:
                continue
            rate = (0.9 if place == kind else 0.2) if has_preferences else (0.6, 0.3, 0.2)[min(place, 2)]
            side = "" if not test_share else "test" if is_test else "train"
            rows.append(Demonstration(query, prompt, float(random.random() < rate), "world", side, 10.0 + place))
    return Demonstrations.from_rows(rows)
