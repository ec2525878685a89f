"""Embeddings of an OpenAI-compatible server, and what is told when it cannot be used."""

import asyncio
import json
from collections.abc import Callable
from functools import partial

import pytest
from aiohttp import web

from drpo_graph.errors import EmbeddingsError, ModelSpecError
from drpo_graph.retrieval import make_embeddings
from tests.support.embeddings import serve_embeddings, vector_of


async def test_texts_are_sent_as_they_are_in_one_request_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "a-key-for-tests")
    async with serve_embeddings() as server:
        embeddings = make_embeddings("openai:any", base_url=f"{server.base_url}/", api_key_env="SOME_KEY")
        vectors = await embeddings.aembed_documents(["a", "b\n"])
        assert await embeddings.aembed_query("a") == vectors[0]
    assert vectors == [pytest.approx(vector_of(text), rel=1e-5) for text in ("a", "b\n")]
    assert [body["input"] for body in server.bodies] == [["a", "b\n"], ["a"]]
    assert {body["model"] for body in server.bodies} == {"any"}
    assert set(server.keys) == {"Bearer a-key-for-tests"}


def entries(*vectors: object, **changes: object) -> str:
    data = [{"index": place, "embedding": vector, **changes} for place, vector in enumerate(vectors)]
    return json.dumps({"data": data, "model": "m"})


ODD = {
    "no data": '{"data": []}',
    "data that is no list": '{"data": {"embedding": [1]}}',
    "error": '{"error": "none here"}',
    "list": "[1, 2]",
    "half": "[1",
    "page": "<html>",
    "nothing": "",
    "empty vector": entries([]),
    "one too few": entries([1, 2]),
    "one too many": entries([1, 2], [3, 4], [5, 6]),
    "other sizes": entries([1, 2], [1, 2, 3]),
    "same place": entries([1, 2], [3, 4], index=0),
    "place beyond": entries([1, 2], [3, 4], index=7),
    "places against their order": json.dumps(
        {"data": [{"index": 9, "embedding": [1]}, {"index": 0, "embedding": [2]}]}
    ),
    "no vector": json.dumps({"data": [{"index": 0}, {"index": 1}]}),
    "no objects": '{"data": [[1, 2], [3, 4]]}',
    "words": entries([1, 2], ["a", "b"]),
    "text": entries([1, 2], "AAAA"),
    "no number": entries([1, 2], [float("nan"), 1]),
    "infinite": entries([1, 2], [float("-inf"), 1]),
    "too large": entries([1, 2], [10**400, 1]),
    "null": entries([1, 2], [None, 1]),
    "zeros": entries([1, 2], [0, 0.0]),
}


@pytest.mark.parametrize("is_blocking", [False, True])
@pytest.mark.parametrize("kind", ODD)
async def test_answer_without_usable_embeddings_is_told_with_what_to_do(kind: str, is_blocking: bool) -> None:
    async with serve_embeddings() as server:
        server.answer = lambda texts: web.Response(text=ODD[kind], content_type="application/json")
        embeddings = make_embeddings("openai:m", base_url=server.base_url)
        blocking = partial(asyncio.to_thread, embeddings.embed_documents)
        with pytest.raises(EmbeddingsError, match="embeddings_base_url") as caught:
            await (blocking if is_blocking else embeddings.aembed_documents)(["a", "b"])
    assert server.base_url in str(caught.value)
    assert caught.value.is_resumable


async def test_refused_request_is_told_with_what_to_do() -> None:
    async with serve_embeddings() as server:
        server.answer = lambda texts: web.Response(status=400, text="no such model")
        with pytest.raises(EmbeddingsError, match=r"no such model.*embeddings_base_url"):
            await make_embeddings("openai:m", base_url=server.base_url).aembed_query("a")


PLACES: dict[str, Callable[[int], object]] = {
    "last first": lambda place: place,
    "none": lambda place: None,
    "from one on": lambda place: place + 1,
    "in words": lambda place: "first",
    "some": lambda place: place if place % 2 else [place],
}


@pytest.mark.parametrize("kind", PLACES)
async def test_vectors_come_in_the_order_of_their_texts(kind: str) -> None:
    async with serve_embeddings() as server:

        def answer(texts: list[str]) -> web.Response:
            data = [{"index": PLACES[kind](place), "embedding": [float(text), 1]} for place, text in enumerate(texts)]
            return web.json_response({"data": data[::-1] if kind == "last first" else data})

        server.answer = answer
        embeddings = make_embeddings("openai:m", base_url=server.base_url)
        texts = [str(number) for number in range(150)]
        vectors = await embeddings.aembed_documents(texts)
        assert vectors == [[float(text), 1.0] for text in texts]
        assert await asyncio.to_thread(embeddings.embed_documents, texts) == vectors
    assert [len(body["input"]) for body in server.bodies] == [64, 64, 22] * 2  # type: ignore[arg-type]


async def test_endpoint_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with serve_embeddings() as server:
        url = server.base_url
    with pytest.raises(EmbeddingsError, match="start the server, then try again") as caught:
        await make_embeddings("openai:m", base_url=url).aembed_documents(["a"])
    assert url in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "base_url", "told"),
    [
        ("all-minilm", None, "expected local:all-minilm-l6-v2, or openai:NAME"),
        ("local:other", None, "expected local:all-minilm-l6-v2"),
        ("openai:", None, "openai:NAME"),
        ("openai:m", None, "OPENAI_API_KEY"),
        ("openai:m", "localhost:80/v1", "expected http"),
        ("openai:m", "http://user:word@host/v1", "without a password"),
        ("openai:m", "http://[host/v1", "expected http"),
    ],
)
def test_wrong_string_or_address_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, spec: str, base_url: str | None, told: str
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelSpecError, match=told) as caught:
        make_embeddings(spec, base_url=base_url)
    assert "word" not in str(caught.value).replace("password", "")
