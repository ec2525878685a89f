"""Examples are found by the cosine of embeddings, without torch."""

import asyncio
import subprocess
import sys

import numpy
import pytest

from drpo_graph.records import ICLExample
from drpo_graph.retrieval import CachedEmbeddings, EmbeddingRetriever, bundled_icl_examples
from tests.docs.snippets import read_snippets, run_snippet
from tests.support.embeddings import CountingEmbeddings, vector_of

NUM_EXAMPLES, NUM_QUERIES = 200, 1000


def make_examples(number: int) -> list[ICLExample]:
    return [ICLExample(query=f"example {place}", response=f"answer {place}") for place in range(number)]


async def test_retrieval_equals_brute_force_cosine() -> None:
    examples = make_examples(NUM_EXAMPLES)
    retriever = EmbeddingRetriever(examples, CountingEmbeddings())
    matrix = numpy.array([vector_of(one.query) for one in examples])
    matrix /= numpy.linalg.norm(matrix, axis=1, keepdims=True)
    for number in range(NUM_QUERIES):
        vector = numpy.array(vector_of(f"query {number}"))
        best = numpy.argsort(-(matrix @ vector))[:3]
        found = await retriever.retrieve(f"query {number}", k=3)
        assert list(found) == [examples[place] for place in best]


async def test_examples_are_embedded_once_for_all_queries_and_loops() -> None:
    embeddings = CountingEmbeddings()
    retriever = EmbeddingRetriever(make_examples(5), embeddings)
    await asyncio.gather(*(retriever.retrieve(str(number), k=1) for number in range(10)))
    await asyncio.to_thread(asyncio.run, retriever.retrieve("other", k=1))
    assert len(embeddings.documents) == 5
    assert len(embeddings.queries) == 11


@pytest.mark.parametrize(("number", "k", "found"), [(0, 2, 0), (3, 0, 0), (3, 2, 2), (3, 9, 3)])
async def test_no_more_examples_than_asked_for_or_there(number: int, k: int, found: int) -> None:
    examples = await EmbeddingRetriever(make_examples(number), CountingEmbeddings()).retrieve("q", k=k)
    assert len(set(examples)) == found


async def test_query_that_is_an_example_s_finds_that_one_first() -> None:
    for example in bundled_icl_examples():
        retriever = EmbeddingRetriever(bundled_icl_examples(), CachedEmbeddings(CountingEmbeddings(), model="m"))
        assert (await retriever.retrieve(example.query, k=2))[0] == example


def test_nothing_imports_torch_before_the_embedded_model_is_used() -> None:
    code = """
import asyncio, sys
import drpo_graph.graph
from drpo_graph.retrieval import *
from tests.support.embeddings import CountingEmbeddings
make_embeddings(DEFAULT_EMBEDDINGS)
retriever = EmbeddingRetriever(bundled_icl_examples(), CountingEmbeddings())
assert len(asyncio.run(retriever.retrieve("Why?", k=2))) == 2
found = {"torch", "transformers", "sentence_transformers", "langchain_openai"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_python_block_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = read_snippets("docs/retrieval.md")
    run_snippet(snippet, "docs/retrieval.md", {"__name__": "snippet"})
    assert (
        capsys.readouterr().out == f"Why is the sky blue, and why are sunsets red? {len(bundled_icl_examples()) + 1}\n"
    )
