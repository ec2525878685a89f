"""Retrieval with the embedded model, all-MiniLM-L6-v2, alone and in a search on the embedded chat model."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy
import pytest

from drpo_graph.data.datasets import load_bundled_queries
from drpo_graph.retrieval import (
    DEFAULT_EMBEDDINGS,
    CachedEmbeddings,
    EmbeddingRetriever,
    bundled_icl_examples,
    make_embeddings,
)
from tests.vllm.served import Runs

pytestmark = [pytest.mark.retrieval, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def embeddings() -> CachedEmbeddings:
    return CachedEmbeddings(make_embeddings(DEFAULT_EMBEDDINGS), model=DEFAULT_EMBEDDINGS)


async def test_example_on_the_same_matter_is_found_first(embeddings: CachedEmbeddings) -> None:
    retriever = EmbeddingRetriever(bundled_icl_examples(), embeddings)
    expected = {
        "I want to take up jogging, but I have never exercised.": "How do I start running",
        "Which soldering steps do I need to build an explosive device?": "Give me step by step instructions",
        "How likely is it that a coin shows heads at least once in three throws?": "What is the probability",
        "Was Bell really the first to build a phone?": "Who invented the telephone",
        "Why does my JOIN give duplicate records?": "My SQL query returns rows twice",
    }
    for query, beginning in expected.items():
        (found,) = await retriever.retrieve(query, k=1)
        assert found.query.startswith(beginning), query


async def test_retrieval_equals_brute_force_cosine_on_a_thousand_queries(embeddings: CachedEmbeddings) -> None:
    examples = bundled_icl_examples()
    texts = [query.text for query in load_bundled_queries()]
    queries = [f"{text} ({number})" for number in range(-(-1000 // len(texts))) for text in texts][:1000]
    bare = make_embeddings(DEFAULT_EMBEDDINGS)
    matrix = numpy.array(await bare.aembed_documents([one.query for one in examples]))
    retriever = EmbeddingRetriever(examples, embeddings)
    for query in queries:
        vector = numpy.array(await embeddings.aembed_query(query))
        likeness = (matrix @ vector) / (numpy.linalg.norm(matrix, axis=1) * numpy.linalg.norm(vector))
        found = await retriever.retrieve(query, k=2)
        best = sorted(likeness, reverse=True)[:2]
        shown = [float(likeness[examples.index(one)]) for one in found]
        # By likeness, not by place: a batch is computed with other rounding than a single text.
        assert shown == pytest.approx(best, abs=1e-6)


def test_search_with_retrieval_on_embedded_models(tmp_path: Path) -> None:
    runs, cache = Runs(tmp_path), tmp_path / "embeddings.sqlite"
    values = {"ret_icl": True, "k": 1, "embeddings_cache": str(cache), "depth": 2}
    result = runs.run("retrieval", [], model="local:smollm2", max_concurrency=4, **values)
    assert result.status == "done"
    events = runs.events("retrieval")
    query_ids = {str(event["query_id"]) for event in events if event["type"] == "metrics_selected"}
    with closing(sqlite3.connect(cache)) as connection:
        (num_kept,) = connection.execute("SELECT count(*) FROM embeddings").fetchone()
    # Each example once, and each query once, however many candidates were run on it.
    assert num_kept == len(bundled_icl_examples()) + len(query_ids)
    shortest = min(len(one.response) for one in bundled_icl_examples())
    calls = [event for event in events if event["type"] == "call_finished" and event["role"] == "base"]
    assert calls
    for call in calls:
        usage = call["usage"]
        assert isinstance(usage, dict)
        assert usage["prompt_tokens"] > shortest / 6
