"""Routers that are learned in milliseconds, from trials in which the better of two prompts depends on the query."""

import random
from collections.abc import Sequence
from typing import Any

from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.training import TrainingSettings, train_router
from tests.support.embeddings import SIZE, CountingEmbeddings, vector_of

STEPS, DRAW = "Think step by step.", "Draw a picture first."
PROMPTS = (STEPS, DRAW, "Answer.")
SUM, SHAPE = "sum", "shape"


class KindEmbeddings(CountingEmbeddings):
    """Vectors that a text's hash decides, but for their first number, which its first word does."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += texts
        return [self.embed(text) for text in texts]

    def embed(self, text: str) -> list[float]:
        """Return the vector of one text."""
        kind = {SUM: 12.0, SHAPE: -12.0}.get(text.split(maxsplit=1)[0], 0.0)
        return [kind, *(number / 4 for number in vector_of(text)[1:SIZE])]


def ask(kind: str, number: int) -> str:
    """Return a query of one of the two kinds."""
    return f"{kind} {number * 7919 % 1009} of {number}?"


def make_rows(num_queries: int = 120, *, gap: float = 0.8, tokens: Sequence[float | None] = ()) -> list[Demonstration]:
    """Return trials of every prompt on every query.

    Args:
        num_queries: How many, half of them of each kind.
        gap: How much likelier each of the first two prompts is right on its own kind than on the other.
        tokens: What a call with each prompt cost; nobody counted when empty.
    """
    draws = random.Random(num_queries)
    rows = []
    for number in range(num_queries):
        kind = (SUM, SHAPE)[number % 2]
        for place, prompt in enumerate(PROMPTS):
            chance = 0.2 if place == 2 else 0.5 + (gap if (place == 0) == (kind == SUM) else -gap) / 2
            cost = tokens[place] if tokens else None
            rows.append(Demonstration(ask(kind, number), prompt, float(draws.random() < chance), "m", tokens=cost))
    return rows


async def learn(rows: Sequence[Demonstration] | None = None, **settings: Any) -> PromptRouter:
    """Return a router that has learned from trials."""
    given = TrainingSettings(**({"reward_model": "neighbours"} | settings))
    table = Demonstrations.from_rows(make_rows() if rows is None else rows)
    return await train_router(table, settings=given, embeddings=KindEmbeddings(), embeddings_name="kinds")
