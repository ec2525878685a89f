"""Features of queries and prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_graph.errors import RewardModelError
from drpo_graph.oirl.features import (
    PROBE,
    EmbeddedTexts,
    FeatureSpace,
    embed_probe,
    embed_texts,
    measure_texts,
    normalise_vectors,
)
from tests.support.embeddings import SIZE, CountingEmbeddings, vector_of


class GivenEmbeddings(CountingEmbeddings):
    """Gives the same rows whatever it is asked."""

    def __init__(self, *rows: Any) -> None:
        super().__init__()
        self.rows = list(rows)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents += texts
        return self.rows


def embedded(*texts: str) -> EmbeddedTexts:
    return EmbeddedTexts(texts, normalise_vectors([vector_of(text) for text in texts], texts))


def learn(queries: Sequence[str] = ("one?", "2 + 2?"), prompts: Sequence[str] = ("p", "Think.")) -> FeatureSpace:
    return FeatureSpace.learn(embedded(*queries), embedded(*prompts), embeddings="hash", probe=vector_of(PROBE))


async def test_embeddings_have_length_one_and_the_order_of_their_texts() -> None:
    found = await embed_texts(["b", "a"], CountingEmbeddings())
    assert found.texts == ("b", "a")
    assert found.vectors.dtype == np.float32
    for row, text in zip(found.vectors, "ba", strict=True):
        np.testing.assert_allclose(row, vector_of(text) / np.linalg.norm(vector_of(text)), rtol=1e-5)


async def test_many_texts_are_embedded_in_batches_each_of_them_once() -> None:
    embeddings = CountingEmbeddings()
    texts = [str(number) for number in range(5_000)]
    assert (await embed_texts(texts, embeddings)).vectors.shape == (5_000, SIZE)
    assert embeddings.documents == texts


async def test_no_text_has_no_embedding() -> None:
    assert len((await embed_texts([], CountingEmbeddings())).vectors) == 0
    assert (
        learn().of_queries(EmbeddedTexts((), normalise_vectors([], []))).shape
        == learn().of_queries(embedded("q"))[:0].shape
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "There are 0 embeddings for 2 texts: expected one each."),
        ([[1.0]], "There are 1 embeddings for 2 texts: expected one each."),
        ([[1.0], [2.0], [3.0]], "There are 3 embeddings for 2 texts: expected one each."),
        ([[1.0, 2.0], [1.0]], "The embeddings have different sizes ([1, 2]): use one model for all texts."),
        ([[1.0, 2.0], []], "The embeddings have different sizes ([0, 2]): use one model for all texts."),
        ([[1.0, 2.0], None], "The embeddings have different sizes ([0, 2]): use one model for all texts."),
        ([[], []], "2 texts have no usable embedding (zero or no number), such as 'first'."),
        ([[1.0, 2.0], [0.0, 0.0]], "1 texts have no usable embedding (zero or no number), such as 'sec ond'."),
        ([[1.0], [float("nan")]], "1 texts have no usable embedding (zero or no number), such as 'sec ond'."),
        ([[1.0], [float("inf")]], "1 texts have no usable embedding (zero or no number), such as 'sec ond'."),
        ([[1.0], [None]], "1 texts have no usable embedding (zero or no number), such as 'sec ond'."),
        ([["one"], ["two"]], "The embeddings are no lists of numbers: "),
        ([None, None], "2 texts have no usable embedding (zero or no number), such as 'first'."),
        ([[[1.0], [1.0, 2.0]], [[1.0], [1.0]]], "The embeddings are no lists of numbers: "),
    ],
)
async def test_embeddings_that_cannot_be_used_are_told_in_one_line(rows: list[Any], problem: str) -> None:
    with pytest.raises(RewardModelError) as raised:
        await embed_texts(["first", "sec ond"], GivenEmbeddings(*rows))
    assert str(raised.value).startswith(problem)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("factor", [1e-150, 1e-30, 1.0, 1e30, 1e150])
def test_the_length_of_an_embedding_does_not_matter(factor: float) -> None:
    rows = [[3 * factor, 4 * factor]]
    np.testing.assert_allclose(normalise_vectors(rows, ["q"]), [[0.6, 0.8]], rtol=1e-6)


async def test_the_embeddings_that_were_learned_with_pass_whatever_they_are_called() -> None:
    space = learn()
    space.check_probe(await embed_probe(CountingEmbeddings()), embeddings="another name")
    space.check_probe([2 * number for number in vector_of(PROBE)], embeddings="hash")
    space.check_probe([number + 1e-5 for number in vector_of(PROBE)], embeddings="hash")


@pytest.mark.parametrize(
    ("probe", "problem"),
    [
        (vector_of("another text"), "which 'hash' is not: it embeds the same text otherwise."),
        ([-number for number in vector_of(PROBE)], "which 'hash' is not: it embeds the same text otherwise."),
        (vector_of(PROBE)[:-1], f"of {SIZE} numbers; 'hash' has {SIZE - 1}."),
        ([0.0] * SIZE, "no usable embedding"),
        ([float("nan")] * SIZE, "no usable embedding"),
    ],
)
def test_other_embeddings_under_the_same_name_are_refused(probe: list[float], problem: str) -> None:
    with pytest.raises(RewardModelError) as raised:
        learn().check_probe(probe, embeddings="hash")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rows", [[], [[1.0], [1.0]]])
async def test_a_probe_has_one_embedding(rows: list[list[float]]) -> None:
    with pytest.raises(RewardModelError, match=f"There are {len(rows)} embeddings for 1 text: expected one"):
        await embed_probe(GivenEmbeddings(*rows))


def test_texts_embedded_in_another_size_are_refused() -> None:
    texts = EmbeddedTexts(("q",), normalise_vectors([[1.0, 2.0]], ["q"]))
    with pytest.raises(RewardModelError, match=f"An embedding has 2 numbers, where 'hash' gave {SIZE}"):
        learn().of_queries(texts)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_has_finite_features_that_no_oddity_of_it_blows_up(text: str) -> None:
    assert np.isfinite(measure_texts([text])).all()
    unit = EmbeddedTexts((text,), normalise_vectors([[1.0] * SIZE], [text]))
    for found in (learn().of_queries(unit), learn().of_prompts(unit)):
        assert np.abs(found).max() <= 2.0


def test_what_is_the_same_in_all_that_was_learned_from_tells_nothing_elsewhere() -> None:
    found = learn(queries=["one?", "two?"]).of_queries(embedded("1, 2, 3?\n $5", "other words, and more."))
    np.testing.assert_array_equal(found[:, SIZE:], 0.0)


def test_features_of_queries_and_prompts_are_centred_apart() -> None:
    space = learn(queries=["a", "b c d e f g"], prompts=["a", "a a"])
    assert not np.array_equal(space.of_queries(embedded("a")), space.of_prompts(embedded("a")))


def test_a_text_has_the_same_features_alone_and_among_others() -> None:
    space, texts = learn(), ("q", "2 + 2 = ?", "x" * 500)
    together = space.of_queries(embedded(*texts))
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_array_equal(space.of_queries(embedded(text))[0], row)
