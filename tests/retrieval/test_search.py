"""A search whose responses are sampled beside ICL examples that resemble the query."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import EmbeddingsError, ModelSpecError, SettingsError
from drpo_graph.graph import build_graph
from drpo_graph.models.request import Request
from drpo_graph.records import ROLES, ICLExample, RunResult
from drpo_graph.retrieval import EmbeddingRetriever, bundled_icl_examples
from drpo_graph.search.assembly import build_context
from drpo_graph.search.hosting import RECURSION_LIMIT
from drpo_graph.search.session import RunContext
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.storage.archive import Archive
from tests.support.embeddings import CountingEmbeddings, EmbeddingsServer, serve_embeddings
from tests.support.oracle import Oracle, OracleTransport, role_of
from tests.support.searches import fake_settings, oracle_context
from tests.support.world import World

WORLD = World(seed=3)
QUERIES = WORLD.train_queries[:6]
SIZE: dict[str, Any] = {"depth": 4, "max_depth_increase": 0, "queries_per_level": 2}


class Recorder:
    """Keeps the messages that the base model is sent."""

    def __init__(self) -> None:
        self.transport = OracleTransport(Oracle(WORLD), before=self._note)
        self.messages: list[list[dict[str, str]]] = []

    def _note(self, request: Request) -> None:
        if role_of(request.messages) == "base":
            self.messages.append([dict(message) for message in request.messages])


async def search(context: RunContext, *, store: InMemoryStore, saver: InMemorySaver | None = None) -> RunResult:
    graph = build_graph(context.settings, checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": RECURSION_LIMIT}
    is_new = saver is None or (await graph.aget_state(config)).created_at is None
    given: Any = {"queries": QUERIES, "validation_queries": []} if is_new else None
    output = await graph.ainvoke(given, config, context=context)  # type: ignore[arg-type]
    return RunResult.model_validate(output["result"])


async def test_query_is_embedded_once_and_every_candidate_sees_its_examples() -> None:
    embeddings, recorder, store = CountingEmbeddings(), Recorder(), InMemoryStore()
    examples = bundled_icl_examples()
    retriever = EmbeddingRetriever(examples, embeddings)
    context = oracle_context(fake_settings(**SIZE), recorder.transport, store=store, example_retriever=retriever)
    result = await search(context, store=store)
    assert result.status == "done"
    seen = Counter(messages[-1]["content"] for messages in recorder.messages)
    assert max(seen.values()) > 2
    # Neither once per child nor once per level: a query that comes back is known.
    assert sorted(embeddings.queries) == sorted(seen)
    assert len(embeddings.documents) == len(examples)
    expected = EmbeddingRetriever(examples, CountingEmbeddings())
    for messages in recorder.messages:
        shown = [
            ICLExample(query=a["content"], response=b["content"])
            for a, b in zip(messages[1:-1:2], messages[2:-1:2], strict=True)
        ]
        assert shown == list(await expected.retrieve(messages[-1]["content"], k=2))


async def test_search_without_retrieval_shows_no_examples_and_embeds_nothing() -> None:
    recorder, store = Recorder(), InMemoryStore()
    await search(oracle_context(fake_settings(**SIZE), recorder.transport, store=store), store=store)
    assert {len(messages) for messages in recorder.messages} == {2}
    assert await Archive(store, "t").get_all("examples") == {}


def remote_settings(server: EmbeddingsServer, **values: Any) -> Settings:
    return fake_settings(**SIZE, ret_icl=True, embeddings="openai:m", embeddings_base_url=server.base_url, **values)


async def test_run_stopped_by_an_endpoint_without_embeddings_is_resumed_elsewhere_and_equals_an_unbroken_one() -> None:
    unbroken = Recorder()
    async with serve_embeddings() as server:
        context = oracle_context(remote_settings(server), unbroken.transport, store=(store := InMemoryStore()))
        expected = await search(context, store=store)
    store, saver, recorder = InMemoryStore(), InMemorySaver(), Recorder()
    async with serve_embeddings() as server:
        server.answer = lambda texts: web.Response(status=400, text="no such model")
        context = oracle_context(remote_settings(server), recorder.transport, store=store)
        with pytest.raises(EmbeddingsError, match=r"http_400.*then resume"):
            await search(context, store=store, saver=saver)
    assert recorder.messages == []
    async with serve_embeddings() as other:
        context = oracle_context(remote_settings(other), recorder.transport, store=store)
        result = await search(context, store=store, saver=saver)
    assert result.system_prompt == expected.system_prompt
    assert sorted(map(json.dumps, recorder.messages)) == sorted(map(json.dumps, unbroken.messages))


async def test_file_of_embeddings_serves_another_run_without_the_endpoint(tmp_path: Path) -> None:
    cache = tmp_path / "embeddings.sqlite"
    async with serve_embeddings() as server:
        context = oracle_context(
            remote_settings(server, embeddings_cache=cache), Recorder().transport, store=(store := InMemoryStore())
        )
        expected = await search(context, store=store)
    context = oracle_context(
        remote_settings(server, embeddings_cache=cache), Recorder().transport, store=(store := InMemoryStore())
    )
    assert (await search(context, store=store)).system_prompt == expected.system_prompt


def fingerprints(**values: Any) -> dict[str, str]:
    roles = {role: {"model": "vllm:m"} for role in ROLES}
    return build_context(Settings.model_validate({**roles, "embeddings": "openai:m", **values})).fingerprints()


def write_examples(path: Path, response: str) -> Path:
    path.write_text(json.dumps({"Why?": response}))
    return path


def test_what_decides_the_examples_is_in_the_fingerprint_and_where_they_stand_is_not(tmp_path: Path) -> None:
    url = {"embeddings_base_url": "http://127.0.0.1:1/v1"}
    first = write_examples(tmp_path / "a.json", "So.")
    shown = fingerprints(ret_icl=True, icl_examples=first, **url)
    moved = {"embeddings_base_url": "http://127.0.0.1:2/v1", "icl_examples": write_examples(tmp_path / "b.json", "So.")}
    assert fingerprints(ret_icl=True, **moved) == shown
    changes: list[dict[str, Any]] = [
        {"k": 3},
        {"ret_icl": False},
        {"embeddings": "openai:other"},
        {"icl_examples": write_examples(tmp_path / "c.json", "Because.")},
    ]
    for change in changes:
        assert fingerprints(**{"ret_icl": True, "icl_examples": first, **url, **change}) != shown


def test_without_retrieval_its_settings_decide_nothing(tmp_path: Path) -> None:
    assert fingerprints(k=5, icl_examples=tmp_path / "nowhere.json") == fingerprints()
    assert not {"ret_icl", "k", "embeddings"} & Settings().fingerprint_fields().keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [("embeddings_base_url", "http://user:secret@host/v1"), ("embeddings_api_key_env", "sk-secret")],
)
def test_key_is_not_taken_into_the_settings(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        build_settings({name: value})
    assert "secret" not in str(caught.value)


def test_wrong_embeddings_are_told_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ModelSpecError, match="OPENAI_API_KEY"):
        fingerprints(ret_icl=True)
