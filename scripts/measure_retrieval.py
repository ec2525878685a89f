"""Measure retrieval: texts a second that are embedded, and come from the cache, and queries a second selected.

python scripts/measure_retrieval.py                         # the embedded model
python scripts/measure_retrieval.py --embeddings openai:NAME --base-url http://127.0.0.1:8001/v1
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from drpo_graph.data.datasets import load_bundled_queries
from drpo_graph.retrieval import (
    DEFAULT_EMBEDDINGS,
    CachedEmbeddings,
    EmbeddingRetriever,
    bundled_icl_examples,
    make_embeddings,
)


def make_texts(number: int) -> list[str]:
    """Return distinct queries of usual lengths."""
    queries = [query.text for query in load_bundled_queries()]
    return [f"{queries[place % len(queries)]} ({place})" for place in range(number)]


async def time_of(work: Awaitable[object]) -> float:
    """Return how many seconds something takes."""
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def measure(embeddings: CachedEmbeddings, reader: CachedEmbeddings, texts: list[str]) -> dict[str, float]:
    """Return texts a second by what was done with them.

    Args:
        embeddings: An empty cache.
        reader: Another on the same file, which has read nothing yet.
        texts: Distinct ones.
    """
    # The model is loaded, or the connection opened, with the first text.
    await embeddings.aembed_documents(["warm"])
    seconds = {
        "embedded, in one batch": await time_of(embeddings.aembed_documents(texts)),
        "from the cache in memory": await time_of(embeddings.aembed_documents(texts)),
        "from the cache in a file": await time_of(reader.aembed_documents(texts)),
    }
    assert reader.counts.num_embedded == 0
    retriever = EmbeddingRetriever(bundled_icl_examples(), embeddings)
    await retriever.retrieve("warm", k=2)

    async def select() -> None:
        for text in texts:
            await retriever.retrieve(text, k=2)

    seconds["selected, query not embedded yet"] = await time_of(select())
    seconds["selected, query in the cache"] = await time_of(select())
    return {name: len(texts) / value for name, value in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", default=DEFAULT_EMBEDDINGS)
    parser.add_argument("--base-url")
    parser.add_argument("--api-key-env")
    parser.add_argument("--texts", type=int, default=1000)
    given = parser.parse_args()
    inner = make_embeddings(given.embeddings, base_url=given.base_url, api_key_env=given.api_key_env)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.sqlite"
        caches = [CachedEmbeddings(inner, model=given.embeddings, file=file) for _ in range(2)]
        rates = asyncio.run(measure(*caches, texts=make_texts(given.texts)))
    print(f"{given.embeddings}, {given.texts} texts, {len(bundled_icl_examples())} examples; per second:")
    for name, rate in rates.items():
        print(f"  {name:34} {rate:>10,.0f}")


if __name__ == "__main__":
    main()
