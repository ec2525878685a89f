"""What a run may spend: its caps, and how durations and amounts are read and told. Part of the settings."""

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from drpo_graph.errors import UsageError
from drpo_graph.records import Record
from drpo_graph.safety.installing import tell_install
from drpo_graph.settings.fingerprint import Operational
from drpo_graph.settings.prices import PICODOLLARS, Price, PriceBook, is_package_installed, names_of

Cap = Literal["max_calls", "max_tokens", "max_cost", "max_time"]
CAPS: tuple[Cap, ...] = ("max_calls", "max_tokens", "max_cost", "max_time")

_UNIT_BY_CAP: dict[Cap, str] = {"max_calls": "calls", "max_tokens": "tokens", "max_time": "s"}
_SECONDS_BY_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class Amount(NamedTuple):
    """What calls use of a budget."""

    calls: int = 0
    tokens: int = 0
    picodollars: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum."""
        return Amount(*(one + two for one, two in zip(self, other, strict=True)))

    def minus(self, other: "Amount") -> "Amount":
        """Return the difference."""
        return Amount(*(one - two for one, two in zip(self, other, strict=True)))


class Limits(Record):
    """One budget for a run's four roles together; what is unset is unbounded. It may change on resume."""

    max_calls: Operational[int | None] = Field(None, ge=1)
    """Model calls; one with several samples is one."""
    max_tokens: Operational[int | None] = Field(None, ge=1)
    """Tokens in prompts and replies, cached ones included."""
    max_cost: Operational[float | None] = Field(None, gt=0, allow_inf_nan=False)
    """USD. Every model needs a price for it."""
    max_time: Operational[float | None] = Field(None, gt=0, allow_inf_nan=False)
    """Seconds of work, summed over the processes of the run; ``"90m"``, ``"2h"``, ``"1d"`` are read too."""
    prices: Operational[dict[str, Price]] = Field(default_factory=dict)
    """Prices by model string, before those of the package ``genai-prices`` (extra ``prices``) and of our short list."""

    @field_validator("max_time", mode="before")
    @classmethod
    def _read_time(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value

    @property
    def is_bounded(self) -> bool:
        """Whether any cap is set on what calls use."""
        return self.max_calls is not None or self.max_tokens is not None or self.max_cost is not None

    def find_exceeded(self, amount: Amount) -> Cap | None:
        """Return a cap that an amount is above, or ``None`` when there is none."""
        if self.max_calls is not None and amount.calls > self.max_calls:
            return "max_calls"
        if self.max_tokens is not None and amount.tokens > self.max_tokens:
            return "max_tokens"
        if self.max_cost is not None and amount.picodollars > round(self.max_cost * PICODOLLARS):
            return "max_cost"
        return None


def check_prices(limits: Limits, model_by_role: Mapping[str, str]) -> None:
    """Do nothing when no money cap is set, or every model has a price.

    Raises:
        UsageError: a model has none: what it spends could not be bounded.
    """
    book = PriceBook(limits.prices)
    for role, model in model_by_role.items():
        if limits.max_cost is not None and model and book.find(model) is None:
            raise UsageError(
                f"max_cost: no price is known for the {role} model {model!r}. Give it in USD per million tokens: "
                f'--price {model}=IN,OUT[,CACHED], or input and output under [prices."{model}"] in a settings file'
                f"{_tell_package()}."
            )


def _tell_package() -> str:
    return "" if is_package_installed() else f"; or install a maintained list of prices: {tell_install('prices')}"


def check_priced(names: Collection[str], model_by_role: Mapping[str, str]) -> None:
    """Do nothing when each model that was given a price is one that a role uses.

    Raises:
        UsageError: one is not: most likely it is misspelt, and the price that was meant is not counted.
    """
    models = sorted({model for model in model_by_role.values() if model})
    for name in names:
        if not any(name in names_of(model) for model in models):
            raise UsageError(f"--price {name}: no role uses this model. The roles' models: {', '.join(models)}.")


def parse_duration(text: str) -> float:
    """Return the seconds in ``90``, ``90s``, ``90m``, ``2h``, ``1d`` or a row of these such as ``1h30m``.

    Raises:
        ValueError: it is none of these.
    """
    try:
        return float(text)
    except ValueError:
        if not _DURATION.fullmatch(text):
            raise ValueError(f"expected seconds or a duration such as 90m, 2h or 1d, got {text!r}") from None
    return sum(float(number) * _SECONDS_BY_UNIT[unit] for number, unit in _PART.findall(text))


def flag_of(cap: Cap) -> str:
    """Return a cap's flag on the command line."""
    return f"--{cap.replace('_', '-')}"


def tell_amount(cap: Cap, value: float, *, limit: float | None = None) -> str:
    """Return an amount of what a cap bounds, for people: ``1,200 tokens``, ``$0.42``, ``90 s``, ``8 of 20 calls``."""
    told = " of ".join(_tell_number(cap, one) for one in (value, limit) if one is not None)
    return told if cap == "max_cost" else f"{told} {_UNIT_BY_CAP[cap]}"


def _tell_number(cap: Cap, value: float) -> str:
    if cap == "max_cost":
        return tell_money(value)
    return f"{value:.2g}" if cap == "max_time" and value < 10 else f"{value:,.0f}"


def tell_money(dollars: float) -> str:
    """Return an amount of money to the cent, and small ones with two digits that say something."""
    return f"${dollars:,.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.2g}"
