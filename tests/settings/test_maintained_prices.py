"""Prices of the package `genai-prices`, where it is installed; ours where it is not, or says none plainly."""

import re
import socket
import sys
from collections.abc import Iterator
from datetime import time
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage as Tokens
from genai_prices import calc_price, data_snapshot
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import (
    ClauseContains,
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from drpo_graph.errors import UsageError
from drpo_graph.records import Usage
from drpo_graph.safety.installing import tell_install
from drpo_graph.settings.limits import Limits, check_prices
from drpo_graph.settings.prices import Price, PriceBook, _load_list, to_dollars
from tests.docs.snippets import ROOT

PACKAGE = "genai_prices"
USAGE = Usage(calls=1, prompt_tokens=1000, completion_tokens=100, cached_tokens=400)
TOKENS = Tokens(input_tokens=1000, output_tokens=100, cache_read_tokens=400)
PROVIDERS = {
    "anthropic": "anthropic",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere": "cohere",
    "fireworks": "fireworks",
    "google_genai": "google",
    "google_vertexai": "google",
    "groq": "groq",
    "mistralai": "mistral",
    "openai": "openai",
    "openrouter": "openrouter",
    "together": "together",
    "xai": "x-ai",
}
"""The package's names of providers by LangChain's."""


def flat(input_price: str = "3", output_price: str | None = "5", **more: str) -> ModelPrice:
    """Return a price as the package has it."""
    given = {"input_mtok": input_price, "output_mtok": output_price, **more}
    return ModelPrice(**{name: None if one is None else Decimal(one) for name, one in given.items()})


def tiers(base: str) -> TieredPrices:
    return TieredPrices(base=Decimal(base), tiers=[Tier(start=200, price=2 * Decimal(base))])


def at_night(price: ModelPrice) -> list[ConditionalPrice]:
    """Return prices that depend on the hour."""
    night = TimeOfDateConstraint(start_time=time(22), end_time=time(6))
    return [ConditionalPrice(prices=flat()), ConditionalPrice(night, prices=price)]


@pytest.fixture
def snapshot() -> Iterator[DataSnapshot]:
    """Prices in place of the package's own: none yet, of one provider."""
    openai = Provider("openai", "OpenAI", "none", model_match=ClauseContains("m"), provider_match=ClauseContains("ope"))
    shown = DataSnapshot([openai], from_auto_update=False)
    data_snapshot.set_custom_snapshot(shown)
    yield shown
    data_snapshot.set_custom_snapshot(None)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed."""
    monkeypatch.setitem(sys.modules, PACKAGE, None)


@pytest.mark.parametrize(("provider", "its_name"), PROVIDERS.items())
def test_costs_are_those_that_the_package_reckons(
    provider: str, its_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # Nothing is fetched.
    (listed,) = [one for one in data_snapshot.get_snapshot().providers if one.id == its_name]
    named = [getattr(one.match, "equals", one.id) for one in listed.models]
    names = [name for name in named if listed.find_model(name)][:40]
    book = PriceBook()
    ours = {name: cost for name in names if (cost := book.cost_of(f"{provider}:{name}", USAGE)) is not None}
    theirs = {name: calc_price(TOKENS, name, provider_id=its_name).total_price for name in ours}
    assert len(ours) >= len(names) / 2 > 0
    assert {name: to_dollars(cost) for name, cost in ours.items()} == pytest.approx(
        {name: float(cost) for name, cost in theirs.items()}
    )


@pytest.mark.parametrize(
    ("told", "price"),
    [
        (flat(), Price(input=3, output=5)),
        (flat(cache_read_mtok="0.3", cache_write_mtok="4", output_audio_mtok="9", web_searches_kcount="1"), "cached"),
        (ModelPrice(input_mtok=tiers("3"), output_mtok=tiers("5"), cache_read_mtok=tiers("0.3")), "cached"),
        (flat("0", "0"), Price(input=0, output=0)),
        # What no flat price says.
        (flat(output_price=None), None),
        (flat(requests_kcount="12"), None),
        (flat(cache_read_mtok="0.3", input_audio_mtok="9"), None),  # Nor the package what cached audio costs.
        (flat(output_reasoning_mtok="9"), None),
        (at_night(flat("1", "1")), None),
        ([ConditionalPrice(prices=flat())], Price(input=3, output=5)),
    ],
)
def test_only_what_a_flat_price_says_is_taken(snapshot: DataSnapshot, told: Any, price: Any) -> None:
    snapshot.providers[0].models = [ModelInfo("m", ClauseEquals("m"), prices=told)]
    expected = Price(input=3, output=5, cached=0.3) if price == "cached" else price
    book = PriceBook()
    assert book.find("openai:m") == book.find("m") == book.find("openai:m-2026-01-01") == expected
    # Neither another provider whose name has this one's in it, nor who serves a hub's model.
    assert book.find("open_gateway:m") is None
    assert book.find("hub/m") is None


def test_the_user_s_price_and_one_s_own_servers_come_before_the_package_and_ours_after(snapshot: DataSnapshot) -> None:
    named = [("gpt-5-mini", flat("7", "9")), ("gpt-4o", flat(output_price=None))]
    snapshot.providers[0].models = [ModelInfo(name, ClauseEquals(name), prices=price) for name, price in named]
    own = Price(input=1, output=2)
    assert PriceBook({"openai:gpt-5-mini": own}).find("openai:gpt-5-mini") == own
    assert PriceBook().find("vllm:gpt-5-mini") == Price(input=0, output=0)
    assert PriceBook().find("openai:gpt-5-mini") == Price(input=7, output=9)
    assert PriceBook().find("openai:gpt-4o") == Price(input=2.5, output=10, cached=1.25)


def test_without_the_package_prices_are_ours_and_a_money_cap_tells_how_to_have_it(absent: None) -> None:
    assert PriceBook().find("openai:gpt-5-mini") == Price(input=0.25, output=2, cached=0.025)
    assert PriceBook().find("anthropic:claude-haiku-4-5") is None
    with pytest.raises(UsageError, match=r"'anthropic:claude-haiku-4-5'.*--price") as told:
        check_prices(Limits(max_cost=5), {"critic": "anthropic:claude-haiku-4-5"})
    assert str(told.value).endswith(f"; or install a maintained list of prices: {tell_install('prices')}.")


def test_what_is_free_or_priced_by_the_user_loads_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE)
    own = PriceBook({"openai:a": Price(input=1, output=2)})
    assert None not in [own.find(model) for model in ("vllm:b", "local:c", "openai:a")]
    assert PACKAGE not in sys.modules


def test_our_list_says_nothing_else_than_the_package() -> None:
    ours, book = _load_list(), PriceBook()
    assert {model: book.find(model) for model in ours} == ours


def test_models_that_the_documents_name_have_a_price_without_the_package(absent: None) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    named = {name for text in texts for name in re.findall(r"openai:gpt-[\w.-]*\w", text)}
    assert named
    assert {name for name in named if PriceBook().find(name) is None} == set()
