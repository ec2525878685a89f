"""Prices: the user's own first, nothing for one's own servers, then the list; sums are exact."""

import pytest

from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.limits import Limits, check_prices, tell_money
from drpo_graph.prices import Price, PriceBook, parse_price, to_dollars
from drpo_graph.records import Usage

MILLION = Usage(calls=1, prompt_tokens=10**6, completion_tokens=10**6)


@pytest.mark.parametrize("model", ["openai:gpt-4o-mini", "openai:gpt-4o-mini-2024-07-18", "gpt-4o-mini"])
def test_a_listed_model_has_its_price_with_a_date_or_without_its_provider(model: str) -> None:
    assert PriceBook().cost_of(model, MILLION) == 750_000_000_000


@pytest.mark.parametrize("model", ["openai:unheard-of", "other:gpt-4o-mini", "gpt-4", ""])
def test_an_unlisted_model_has_no_price(model: str) -> None:
    assert PriceBook().find(model) is None
    assert PriceBook().cost_of(model, MILLION) is None


@pytest.mark.parametrize("model", ["vllm:meta-llama/Llama-3.1-8B", "local:smollm2"])
def test_a_model_on_a_server_of_one_s_own_costs_nothing_unless_it_has_a_price(model: str) -> None:
    assert PriceBook().cost_of(model, MILLION) == 0
    assert PriceBook({model: Price(input=1, output=2)}).cost_of(model, MILLION) == 3 * 10**12


def test_cached_tokens_have_the_cached_price_where_there_is_one() -> None:
    usage = Usage(calls=1, prompt_tokens=1000, completion_tokens=10, cached_tokens=600)
    assert Price(input=1, output=2, cached=0.1).cost_of(usage) == 400_000_000 + 60_000_000 + 20_000_000
    assert Price(input=1, output=2).cost_of(usage) == 1_020_000_000


def test_sums_do_not_depend_on_their_order() -> None:
    price = Price(input=0.15, output=0.6)
    parts = [price.cost_of(Usage(calls=1, prompt_tokens=n, completion_tokens=n)) for n in range(1, 400)]
    assert (
        sum(parts)
        == sum(reversed(parts))
        == price.cost_of(Usage(calls=1, prompt_tokens=sum(range(400)), completion_tokens=sum(range(400))))
    )
    assert to_dollars(sum(parts)) == 0.05985


def test_a_price_is_read_from_the_command_line() -> None:
    assert parse_price("openai:m=0.15,0.6") == ("openai:m", Price(input=0.15, output=0.6))
    assert parse_price("local:a=b=1,2,0.5") == ("local:a=b", Price(input=1, output=2, cached=0.5))


@pytest.mark.parametrize("text", ["", "m", "m=1", "m=1,2,3,4", "=1,2", "m=a,b", "m=1,-2", "m=nan,1", "m=1,inf"])
def test_what_is_no_price_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--price .*expected MODEL=IN,OUT"):
        parse_price(text)


def test_a_money_cap_needs_every_model_s_price() -> None:
    models = {"base": "vllm:a", "metrics": "openai:gpt-4o-mini", "critic": "openai:unheard-of"}
    check_prices(Limits(max_calls=5), models)
    with pytest.raises(UsageError, match=r"critic model 'openai:unheard-of'.*--price openai:unheard-of=IN,OUT"):
        check_prices(Limits(max_cost=5), models)
    check_prices(Limits(max_cost=5, prices={"openai:unheard-of": Price(input=1, output=1)}), models)


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(0, "$0.00"), (0.000123, "$0.00012"), (0.42, "$0.42"), (1.234, "$1.23"), (1234.5, "$1,234.50")],
)
def test_money_is_told_in_few_digits(dollars: float, text: str) -> None:
    assert tell_money(dollars) == text
