"""Embeddings are kept by content: a text is embedded once."""

import asyncio
import sqlite3
import stat
from array import array
from contextlib import closing
from pathlib import Path

import pytest
from langchain_core.embeddings import Embeddings

from drpo_graph.errors import EmbeddingsError
from drpo_graph.retrieval import CacheCounts, CachedEmbeddings, cache
from tests.support.embeddings import CountingEmbeddings, vector_of


async def test_text_is_embedded_once_however_often_it_is_asked_for() -> None:
    inner = CountingEmbeddings()
    cached = CachedEmbeddings(inner, model="m")
    assert await cached.aembed_documents(["a", "b", "a"]) == [vector_of("a"), vector_of("b"), vector_of("a")]
    assert cached.embed_documents(["b", "c"]) == [vector_of("b"), vector_of("c")]
    assert inner.documents == ["a", "b", "c"]
    assert cached.counts == CacheCounts(num_embedded=3, num_from_memory=1)


async def test_query_is_not_taken_for_a_document() -> None:
    inner = CountingEmbeddings()
    cached = CachedEmbeddings(inner, model="m")
    await cached.aembed_documents(["a"])
    assert await cached.aembed_query("a") == cached.embed_query("a")
    assert (inner.documents, inner.queries) == (["a"], ["a"])


async def test_those_who_ask_at_the_same_time_share_one_embedding() -> None:
    inner = CountingEmbeddings()
    cached = CachedEmbeddings(inner, model="m")
    found = await asyncio.gather(*(cached.aembed_query("a") for _ in range(20)))
    assert found == [vector_of("a")] * 20
    assert inner.queries == ["a"]
    assert cached.counts == CacheCounts(num_embedded=1, num_from_memory=19)


async def test_one_who_gives_up_does_not_cost_the_others_theirs() -> None:
    cached = CachedEmbeddings(CountingEmbeddings(), model="m")
    first = asyncio.create_task(cached.aembed_query("a"))
    second = asyncio.create_task(cached.aembed_query("a"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == vector_of("a")


async def test_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    inner = CountingEmbeddings(error=EmbeddingsError("out of reach"))
    cached = CachedEmbeddings(inner, model="m")
    found = await asyncio.gather(*(cached.aembed_query("a") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [EmbeddingsError] * 3
    inner.error = None
    assert await cached.aembed_query("a") == vector_of("a")


async def test_file_keeps_embeddings_by_model_for_later_processes(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache.sqlite"
    first = CachedEmbeddings(CountingEmbeddings(), model="m", file=path)
    texts = [str(number) for number in range(1200)]
    await first.aembed_documents(texts)
    inner = CountingEmbeddings()
    later = CachedEmbeddings(inner, model="m", file=path)
    assert await later.aembed_documents(texts) == [vector_of(text) for text in texts]
    assert inner.documents == []
    assert later.counts == CacheCounts(num_from_file=1200)
    CachedEmbeddings(inner, model="other", file=path).embed_documents(["1"])
    assert inner.documents == ["1"]


def test_file_is_readable_by_its_owner_alone_and_holds_no_text(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    CachedEmbeddings(CountingEmbeddings(), model="m", file=path).embed_query("a secret question")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"secret" not in path.read_bytes()


def test_file_that_is_no_cache_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("no database at all, but long enough to be looked at" * 100)
    with pytest.raises(EmbeddingsError, match=r"cache\.sqlite cannot be used.*Delete it"):
        CachedEmbeddings(CountingEmbeddings(), model="m", file=path)


def test_damaged_vector_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    CachedEmbeddings(CountingEmbeddings(), model="m", file=path).embed_query("a")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE embeddings SET vector = ?", (b"abc",))
    connection.close()
    with pytest.raises(EmbeddingsError, match="cannot be used"):
        CachedEmbeddings(CountingEmbeddings(), model="m", file=path).embed_query("a")


def test_model_that_gives_too_few_vectors_is_told_as_such() -> None:
    class Half(CountingEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return super().embed_documents(texts)[::2]

    with pytest.raises(EmbeddingsError, match="1 vectors for 2 texts"):
        CachedEmbeddings(Half(), model="m").embed_documents(["a", "b"])


def test_vectors_come_back_to_the_last_digit() -> None:
    cached = CachedEmbeddings(CountingEmbeddings(), model="m")
    assert cached.embed_query("x") == list(array("d", vector_of("x"))) == cached.embed_query("x")


@pytest.mark.parametrize("vector", [[float("nan"), 1.0], [0.0, 0.0], [None, 1.0], ["a", "b"]])
async def test_vector_that_has_no_direction_is_told_and_not_kept(tmp_path: Path, vector: list[float]) -> None:
    class Broken(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector for _ in texts]

        def embed_query(self, text: str) -> list[float]:
            return vector

    cached = CachedEmbeddings(Broken(), model="m", file=tmp_path / "e.sqlite")
    with pytest.raises(EmbeddingsError, match="no number"):
        await cached.aembed_documents(["a"])
    with pytest.raises(EmbeddingsError, match="no number"):
        cached.embed_query("a")
    with closing(sqlite3.connect(tmp_path / "e.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM embeddings").fetchone() == (0,)


async def test_two_models_under_one_name_are_told(tmp_path: Path) -> None:
    file = tmp_path / "e.sqlite"
    await CachedEmbeddings(Sized(2), model="m", file=file).aembed_documents(["a"])
    other = CachedEmbeddings(Sized(3), model="m", file=file)
    with pytest.raises(EmbeddingsError, match="2 and 3 numbers"):
        await other.aembed_documents(["a", "b"])


async def test_file_that_another_process_holds_does_not_stop_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LOCK_WAIT_S", 0.5)
    cached = CachedEmbeddings(Sized(2), model="m", file=tmp_path / "e.sqlite")
    with closing(sqlite3.connect(tmp_path / "e.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        asking = asyncio.create_task(cached.aembed_documents(["a"]))
        steps = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            steps += 1
        with pytest.raises(EmbeddingsError, match="held by another process"):
            await asking
    # Had the loop stood still, it would have come here once or twice.
    assert steps > 10
    assert await cached.aembed_documents(["a"]) == [[1.0, 1.0]]


class Sized(Embeddings):
    """Vectors of so many numbers."""

    def __init__(self, size: int) -> None:
        self._size = size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] * self._size for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0] * self._size
