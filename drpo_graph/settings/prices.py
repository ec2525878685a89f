"""What tokens cost: a dated list of well-known models, and the user's own prices before it. Sums are exact."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from pydantic import Field

from drpo_graph.errors import SettingsError
from drpo_graph.records import Record, Usage

PICODOLLARS = 10**12
"""In a dollar. Money is counted in whole picodollars: a dollar per million tokens is a million of them per token, so
that sums do not depend on their order."""

_PER_TOKEN = PICODOLLARS // 10**6
_OWN_SERVERS = ("local:", "vllm:")
_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


class Price(Record):
    """A model's price, in USD per million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cached: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Of prompt tokens that came from the provider's cache; ``input`` when absent."""

    def cost_of(self, usage: Usage) -> int:
        """Return what finished calls cost, in picodollars."""
        cached_price = self.input if self.cached is None else self.cached
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        return (
            (usage.prompt_tokens - cached) * _per_token(self.input)
            + cached * _per_token(cached_price)
            + usage.completion_tokens * _per_token(self.output)
        )


_FREE = Price(input=0, output=0)


class PriceBook:
    """Prices by model string: the user's own, else nothing for models on servers of one's own, else the list's."""

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        self._own = dict(own or {})

    def find(self, model: str) -> Price | None:
        """Return a model's price, or ``None`` when it is not known.

        Args:
            model: ``provider:model``; the name alone will do where one provider of the list has it.
        """
        names = names_of(model)
        for name in names:
            if name in self._own:
                return self._own[name]
        if model.startswith(_OWN_SERVERS):
            return _FREE
        listed = _load_list()
        for name in names:
            if name in listed:
                return listed[name]
            named_so = [price for known, price in listed.items() if known.partition(":")[2] == name]
            if len(named_so) == 1:
                return named_so[0]
        return None

    def cost_of(self, model: str, usage: Usage) -> int | None:
        """Return what a model's calls cost, in picodollars, or ``None`` when its price is not known."""
        price = self.find(model)
        return None if price is None else price.cost_of(usage)


def parse_price(text: str) -> tuple[str, Price]:
    """Return model and price of ``MODEL=IN,OUT[,CACHED]``.

    Raises:
        SettingsError: it is not of this form.
    """
    model, _, numbers = text.rpartition("=")
    try:
        given = [float(one) for one in numbers.split(",")]
        if not model or len(given) not in (2, 3):
            raise ValueError
        return model, Price(input=given[0], output=given[1], cached=given[2] if len(given) == 3 else None)
    except ValueError:  # pydantic's is one too: a negative price.
        raise SettingsError(
            f"--price {text}: expected MODEL=IN,OUT[,CACHED] in USD per million tokens, e.g. openai:NAME=0.15,0.6."
        ) from None


def to_dollars(picodollars: int) -> float:
    """Return an amount of money in USD."""
    return picodollars / PICODOLLARS


def names_of(model: str) -> tuple[str, str]:
    """Return the names under which a model's price may stand, the closest first: its own, and without its date."""
    return model, _DATE.sub("", model)


def _per_token(price: float) -> int:
    return round(price * _PER_TOKEN)


@cache
def _load_list() -> Mapping[str, Price]:
    text = files("drpo_graph.settings").joinpath("prices.toml").read_text(encoding="utf-8")
    return {model: Price.model_validate(price) for model, price in tomllib.loads(text)["prices"].items()}
