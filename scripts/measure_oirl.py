"""Measure what Prompt-OIRL costs on a large table: memory and time to learn, and to route many queries at once.

Run from a checkout: ``python scripts/measure_oirl.py --queries 100000 --prompts 10``. Queries, embeddings and outcomes
are made up. Exits with 1 where learning took more memory than ``--max-gib``.
"""

import argparse
import asyncio
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
from langchain_core.embeddings import Embeddings

from drpo_graph.oirl import Demonstrations, TrainingSettings, train_router
from drpo_graph.oirl.anchors import offer_prompts
from drpo_graph.oirl.demonstrations import COLUMNS, TableBuilder
from drpo_graph.oirl.features import embed_texts
from drpo_graph.oirl.rewards.catalogue import DEFAULT_REWARD_MODEL, REWARD_MODELS

_SIZE = 384
_BATCH = 50_000


class _Random(Embeddings):
    """As long as MiniLM's, at random, by the text's number."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        seeds = [int("".join(filter(str.isdigit, text)) or 0) for text in texts]
        return [np.random.default_rng(seed).standard_normal(_SIZE).tolist() for seed in seeds]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def make_table(num_queries: int, num_prompts: int) -> Demonstrations:
    """Return a table of every prompt on every query."""
    builder = TableBuilder()
    for batch in _rows(num_queries, num_prompts):
        builder.add(batch)
    return builder.finish()


def _rows(num_queries: int, num_prompts: int) -> Iterator[list[list[object]]]:
    random = np.random.default_rng(0)
    step = max(1, _BATCH // num_prompts)
    for start in range(0, num_queries, step):
        some = range(start, min(num_queries, start + step))
        rows = [(f"Query {query} about it.", f"Prompt {prompt}.") for query in some for prompt in range(num_prompts)]
        outcomes = (random.random(len(rows)) < 0.4).astype(float).tolist()
        columns: dict[str, list[object]] = {
            "query": [query for query, _ in rows],
            "prompt": [prompt for _, prompt in rows],
            "outcome": outcomes,
        }
        yield [columns.get(name, [None] * len(rows)) for name in COLUMNS]


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


async def measure(arguments: argparse.Namespace) -> int:
    """Print what was measured, and return the exit code."""
    begun = time.perf_counter()
    table = make_table(arguments.queries, arguments.prompts)
    made = time.perf_counter()
    print(f"{len(table):,} demonstrations made in {made - begun:.1f} s, peak {_peak_gib():.2f} GiB")
    settings = TrainingSettings(reward_model=arguments.reward_model, policy="best")
    router = await train_router(table, settings=settings, embeddings=_Random())
    learned = time.perf_counter()
    peak = _peak_gib()
    print(f"embedded and learned ({arguments.reward_model}) in {learned - made:.1f} s, peak {peak:.2f} GiB")
    offered = await offer_prompts(router, [f"New prompt {number}." for number in range(100)])
    queries = await embed_texts([f"New query {number}." for number in range(10_000)], _Random())
    begun = time.perf_counter()
    offered.route(queries)
    took = time.perf_counter() - begun
    print(f"10,000 queries routed over 100 prompts in {took:.1f} s, {took:.2f} microseconds per pair")
    return 0 if peak <= arguments.max_gib else 1


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--reward-model", choices=REWARD_MODELS, default=DEFAULT_REWARD_MODEL)
    parser.add_argument("--max-gib", type=float, default=4.0)
    return asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
