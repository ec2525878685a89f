"""Prices: the user's own first, nothing for one's own servers, then our list; sums are exact."""

import pytest

from drpo_graph.errors import SettingsError, UsageError
from drpo_graph.records import Usage
from drpo_graph.settings.limits import Cap, Limits, check_priced, check_prices, tell_amount, tell_money
from drpo_graph.settings.prices import Price, PriceBook, parse_price, to_dollars

MILLION = Usage(calls=1, prompt_tokens=10**6, completion_tokens=10**6)


@pytest.mark.parametrize("model", ["openai:gpt-4o-mini", "openai:gpt-4o-mini-2024-07-18", "gpt-4o-mini"])
def test_a_listed_model_has_its_price_with_a_date_or_without_its_provider(model: str) -> None:
    assert PriceBook().cost_of(model, MILLION) == 750_000_000_000


def test_a_dated_model_with_a_price_of_its_own_has_that_one() -> None:
    assert (
        PriceBook().find("openai:gpt-4o-2024-05-13")
        == PriceBook().find("gpt-4o-2024-05-13")
        == Price(input=5, output=15)
    )
    assert PriceBook().find("openai:gpt-4o-2024-08-06") == PriceBook().find("openai:gpt-4o")


def test_the_user_s_price_comes_first_for_dated_models_too() -> None:
    undated, dated = Price(input=1, output=2), Price(input=3, output=4)
    own = PriceBook({"openai:gpt-4o": undated, "openai:gpt-4o-2024-08-06": dated})
    assert own.find("openai:gpt-4o-2024-05-13") == undated
    assert own.find("openai:gpt-4o-2024-08-06") == dated


def test_a_price_for_a_model_that_no_role_uses_is_refused_with_the_models_that_are() -> None:
    models = {"base": "vllm:a", "critic": "openai:gpt-4o-2024-08-06", "metrics": ""}
    check_priced(["vllm:a", "openai:gpt-4o"], models)
    with pytest.raises(
        UsageError, match=r"--price openai:gpt-4: no role .* models: openai:gpt-4o-2024-08-06, vllm:a\."
    ):
        check_priced(["vllm:a", "openai:gpt-4"], models)


@pytest.mark.parametrize("model", ["openai:unheard-of", "other:gpt-4o-mini", "gpt", "openai/gpt-4o", ""])
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
    with pytest.raises(UsageError, match=r"critic model 'openai:unheard-of'.*--price openai:unheard-of=IN,OUT") as told:
        check_prices(Limits(max_cost=5), models)
    assert "install" not in str(told.value)
    check_prices(Limits(max_cost=5, prices={"openai:unheard-of": Price(input=1, output=1)}), models)


@pytest.mark.parametrize(
    ("cap", "value", "limit", "text"),
    [
        ("max_time", 0.2341, 0.1, "0.23 of 0.1 s"),
        ("max_time", 1.64, 1.4, "1.6 of 1.4 s"),
        ("max_time", 35.2, 10.0, "35 of 10 s"),
        ("max_time", 7200.0, None, "7,200 s"),
        ("max_calls", 3.0, 5.0, "3 of 5 calls"),
    ],
)
def test_short_times_are_told_in_parts_of_seconds(cap: Cap, value: float, limit: float | None, text: str) -> None:
    assert tell_amount(cap, value, limit=limit) == text


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(0, "$0.00"), (0.000123, "$0.00012"), (0.42, "$0.42"), (1.234, "$1.23"), (1234.5, "$1,234.50")],
)
def test_money_is_told_in_few_digits(dollars: float, text: str) -> None:
    assert tell_money(dollars) == text
