"""What tokens cost: the user's own prices, a maintained package's, and a short list of ours. Sums are exact."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import Field

from drpo_graph.errors import SettingsError
from drpo_graph.records import Record, Usage

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

PICODOLLARS = 10**12
"""In a dollar. Money is counted in whole picodollars: a dollar per million tokens is a million of them per token, so
that sums do not depend on their order."""

_PER_TOKEN = PICODOLLARS // 10**6
_OWN_SERVERS = ("local:", "vllm:")
_PACKAGE = "genai_prices"
_PACKAGE_PROVIDERS: Mapping[str, str] = {
    "anthropic_bedrock": "aws",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "bedrock_mantle_anthropic": "aws",
    "bedrock_mantle_openai": "aws",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "xai": "x-ai",
}
"""What the package calls a provider, where that is not what model strings call it."""
_MORE_OF_TEXT = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")
"""What a call with a text costs at some models beside what a :class:`Price` has."""
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
    """Prices by model string, from the first that has one.

    The user's own; nothing for models on servers of one's own; those of the package `genai-prices`, where it is
    installed; our list's. A price once found stays, even where the package has another one from a certain day on.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        self._own = dict(own or {})
        self._found: dict[str, Price | None] = {}

    def find(self, model: str) -> Price | None:
        """Return a model's price, or ``None`` when it is not known.

        Args:
            model: ``provider:model``; the name alone will do where it says whose model it is.
        """
        if model not in self._found:
            self._found[model] = self._look_up(model)
        return self._found[model]

    def _look_up(self, model: str) -> Price | None:
        names = names_of(model)
        for name in names:
            if name in self._own:
                return self._own[name]
        if model.startswith(_OWN_SERVERS):
            return _FREE
        found = (one for find in (_find_in_package, _find_in_list) for name in names if (one := find(name)))
        return next(found, None)

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


def is_package_installed() -> bool:
    """Return whether prices come from the maintained package (extra ``prices``)."""
    return find_spec(_PACKAGE) is not None


def _find_in_package(model: str) -> Price | None:
    """Return the package's price of a model; ``None`` where it has none that a :class:`Price` says."""
    provider, name = model.split(":", 1) if ":" in model else ("", model)
    # The name alone says whose model it is, but that of a model hub not who serves it.
    if not is_package_installed() or ("/" in name and not provider):
        return None
    # Only now: it holds 1.6 MB of prices. Nothing is fetched.
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    known_as = _PACKAGE_PROVIDERS.get(provider, provider) or None
    try:
        found = calc_price(Tokens(input_tokens=1, output_tokens=1), name, provider_id=known_as)
    except (LookupError, ValueError):  # Not known, or not to be reckoned with.
        return None
    # It also takes a provider for the one whose name is within its own.
    return _read_price(found) if known_as in (None, found.provider.id) else None


def _read_price(found: "PriceCalculation") -> Price | None:
    from genai_prices.types import TieredPrices, TimeOfDateConstraint

    told, over_time = found.model_price, found.model.prices
    depends_on_hour = isinstance(over_time, list) and any(
        isinstance(one.constraint, TimeOfDateConstraint) for one in over_time
    )
    if depends_on_hour or any(getattr(told, name, None) is not None for name in _MORE_OF_TEXT):
        return None
    given = (told.input_mtok, told.output_mtok, told.cache_read_mtok)
    input_price, output_price, cached = (one.base if isinstance(one, TieredPrices) else one for one in given)
    if input_price is None or output_price is None:
        return None
    return Price(input=float(input_price), output=float(output_price), cached=None if cached is None else float(cached))


def _find_in_list(model: str) -> Price | None:
    """Return our list's price of a model; its name alone will do where one provider has it."""
    listed = _load_list()
    if model in listed:
        return listed[model]
    named_so = [price for known, price in listed.items() if known.partition(":")[2] == model]
    return named_so[0] if len(named_so) == 1 else None


@cache
def _load_list() -> Mapping[str, Price]:
    text = files("drpo_graph.settings").joinpath("prices.toml").read_text(encoding="utf-8")
    return {model: Price.model_validate(price) for model, price in tomllib.loads(text)["prices"].items()}
