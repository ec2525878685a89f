"""Embeddings of an OpenAI-compatible server, and what is told when it cannot be used."""

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


@pytest.mark.parametrize(
    "answer",
    [
        lambda texts: web.Response(status=400, text="no such model"),
        lambda texts: web.json_response({"data": []}),
        lambda texts: web.json_response({"error": "none here"}),
        lambda texts: web.json_response({"data": [{"embedding": [], "index": 0}], "model": "m"}),
        lambda texts: web.Response(text="<html>", content_type="text/html"),
        lambda texts: web.Response(text="[1", content_type="application/json"),
    ],
    ids=["status", "no data", "error", "empty vector", "page", "half"],
)
async def test_answer_without_embeddings_is_told_with_what_to_do(answer: object) -> None:
    async with serve_embeddings() as server:
        server.answer = answer  # type: ignore[assignment]
        embeddings = make_embeddings("openai:m", base_url=server.base_url)
        with pytest.raises(EmbeddingsError, match="embeddings_base_url") as caught:
            await embeddings.aembed_query("a")
    assert server.base_url in str(caught.value)
    assert caught.value.is_resumable


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
