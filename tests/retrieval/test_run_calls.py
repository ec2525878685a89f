"""Texts that a run embeds at an endpoint: retried, waited for, counted and kept like the calls of its models."""

import asyncio

import pytest
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from drpo_graph.calls.budget import Budget
from drpo_graph.calls.embedding import EmbeddingCalls
from drpo_graph.calls.ledger import Ledger
from drpo_graph.errors import BudgetSpentError, EmbeddingsError, RunInterruptedError, UsageError
from drpo_graph.events.emitter import Emitter
from drpo_graph.events.schema import CallFinished, CallRetried, EndpointBack, EndpointLost, Event
from drpo_graph.records import ROLES
from drpo_graph.retrieval import CachedEmbeddings, make_embeddings
from drpo_graph.search.assembly import build_context
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import Settings
from drpo_graph.stop import StopSignal
from drpo_graph.storage.archive import Archive
from tests.support.embeddings import EmbeddingsServer, serve_embeddings, vector_of

TEXTS = ["tides", "bleach"]


class Run:
    """One process of a run, on a store that outlives it."""

    def __init__(self, server: EmbeddingsServer, *, store: BaseStore | None = None, **settings: object) -> None:
        given = {"retry_wait_s": 0.001, **settings}
        self.settings = Settings.model_validate(given)
        self.store = store or InMemoryStore()
        self.events: list[Event] = []
        archive = Archive(self.store, "t")
        self.ledger = Ledger(archive, StopSignal(), Budget(self.settings))
        self.calls = EmbeddingCalls(self.settings, self.ledger, archive, Emitter("t", (self.events.append,)))
        self.is_loaded = False
        self.cached = CachedEmbeddings(make_embeddings("openai:m", base_url=server.base_url), model="m")

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Return vectors as a run's parts get them."""
        if not self.is_loaded:
            self.is_loaded = True
            await self.ledger.load()
        with self.calls.bound():
            return await self.cached.aembed_documents(texts)

    def told(self, kind: type[Event]) -> list[Event]:
        """Return the events of a kind."""
        return [one for one in self.events if isinstance(one, kind)]


def is_right(vectors: list[list[float]], texts: list[str] = TEXTS) -> bool:
    return vectors == [pytest.approx(vector_of(text), rel=1e-5) for text in texts]


@pytest.mark.parametrize(
    ("faults", "kinds"),
    [
        ([429, 429, 429, 429, 429, 429, 429, 429], {"http_429": 8}),
        ([503, "cut", 500], {"http_503": 1, "connection": 1, "http_500": 1}),
        (["page"], {"malformed": 1}),
    ],
    ids=str,
)
async def test_passing_faults_are_asked_again_and_told_as_for_every_call(
    faults: list[int | str], kinds: dict[str, int]
) -> None:
    async with serve_embeddings() as server:
        run = Run(server)
        assert is_right(await run.embed(["first"]), ["first"])
        server.faults = faults
        assert is_right(await run.embed(TEXTS))
    assert run.ledger.retries_by_kind == kinds
    assert len(run.told(CallRetried)) == sum(kinds.values())
    assert [(one.role, one.model) for one in run.told(CallFinished)] == [("embeddings", "openai:m")] * 2  # type: ignore[union-attr]
    usage = run.ledger.usage_by_role["embeddings"]
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (2, 2, 0)


async def test_no_text_is_paid_for_twice_however_the_run_goes_on() -> None:
    async with serve_embeddings() as server:
        first = Run(server)
        await first.embed(TEXTS)
        again = Run(server, store=first.store)
        assert is_right(await again.embed(["new", *TEXTS]), ["new", *TEXTS])
        last = Run(server, store=first.store)
        assert is_right(await last.embed(["new", TEXTS[1]]), ["new", TEXTS[1]])
    assert server.embedded == [*TEXTS, "new"]
    assert last.ledger.usage_by_role["embeddings"].calls == 2


async def test_lost_endpoint_is_waited_for() -> None:
    async with serve_embeddings() as server:
        run = Run(server, retry_wait_s=0.01)
        await run.embed(["first"])
        port = int(server.base_url.split(":")[2].removesuffix("/v1"))
    asked = asyncio.create_task(run.embed(TEXTS))
    while not run.told(EndpointLost):
        await asyncio.sleep(0.001)
    async with serve_embeddings(port):
        assert is_right(await asked)
    assert len(run.told(EndpointBack)) == 1


@pytest.mark.parametrize(("faults", "told"), [([401], "http_401.*OPENAI_API_KEY"), ([400], "http_400")])
async def test_endpoint_that_cannot_be_used_stops_the_run_with_what_to_do(
    faults: list[int | str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    async with serve_embeddings() as server:
        server.faults = faults
        with pytest.raises(EmbeddingsError, match=f"{told}.*embeddings_base_url") as caught:
            await Run(server).embed(TEXTS)
    assert caught.value.is_resumable


async def test_outage_that_lasts_too_long_stops_the_run() -> None:
    async with serve_embeddings() as server:
        run = Run(server, max_outage_s=0.05, retry_wait_s=0.01)
        await run.embed(["first"])
    with pytest.raises(EmbeddingsError, match="has been away"):
        await run.embed(TEXTS)


@pytest.mark.parametrize("caps", [{"max_calls": 1}, {"max_tokens": 90}], ids=str)
async def test_budget_bounds_embeddings(caps: dict[str, int]) -> None:
    async with serve_embeddings() as server:
        run = Run(server, **caps)
        await run.embed(["first"])
        with pytest.raises(BudgetSpentError):
            await run.embed(["a text that is longer than what is left of the budget, should that be twenty tokens"])
    assert server.embedded == ["first"]


def test_money_cap_needs_the_price_of_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests")
    models = {f"{role}_model": "vllm:m" for role in ROLES}
    unknown = build_settings({**models, "max_cost": 1.0, "ret_icl": True, "embeddings": "openai:nobody-knows"})
    with pytest.raises(UsageError, match="no price is known for the embeddings model 'openai:nobody-knows'"):
        build_context(unknown)
    build_context(unknown.model_copy(update={"embeddings": "openai:text-embedding-3-small"}))


async def test_run_that_stops_does_not_stop_another_that_waits_for_the_same_text() -> None:
    async with serve_embeddings() as server:
        one, other = Run(server), Run(server)
        other.cached = one.cached
        await one.embed(["first"])
        server.faults = [503] * 3
        # Begun together: the text is embedded for the first of them, which stops.
        first, second = asyncio.create_task(one.embed(TEXTS)), asyncio.create_task(other.embed(TEXTS))
        while not one.told(CallRetried):
            await asyncio.sleep(0)
        one.ledger.stop.request("enough")
        with pytest.raises(RunInterruptedError):
            await first
        assert is_right(await second)
