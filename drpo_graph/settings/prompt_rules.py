"""Settings of what a prompt has to keep to: placeholders, what a rewrite may quote, rewards of the user's own."""

from pydantic import Field, field_validator

from drpo_graph.records import PlaceholderStyle
from drpo_graph.settings.fingerprint import LeftOutAtDefault
from drpo_graph.settings.limits import Limits


class PromptRules(Limits):
    """What rewrites are checked for before they are evaluated, and what scores them besides the critic."""

    placeholders: LeftOutAtDefault[PlaceholderStyle] = "none"
    """How the initial prompt marks what an app fills in: ``format`` ({name}), ``mustache`` ({{name}}), ``dollar``
    ($name), or ``auto``, which finds out; ``none`` takes braces and dollar signs as they are."""
    placeholder_values: LeftOutAtDefault[dict[str, str]] = Field(default_factory=dict)
    """What is filled in where a query brings no value of its own."""
    min_quote_chars: LeftOutAtDefault[int | None] = Field(60, ge=20)
    """A rewrite that repeats so many characters in a row of a query or response it was shown is not used; unset allows
    it. Not so under compat."""
    min_quote_words: LeftOutAtDefault[int | None] = Field(12, ge=4)
    """The same in words."""
    reward: LeftOutAtDefault[tuple[str, ...] | None] = None
    """Rewards in the critic's place or mixed with it: reward functions, ``module:function`` each, or ``exact``,
    ``contains``, ``numeric``, ``regex``, ``json`` for what the reference says, ``regex:PATTERN``, ``schema:FILE``."""
    reward_weight: LeftOutAtDefault[float] = Field(1.0, gt=0, le=1)
    """Their share of a response's reward; the critic has the rest, and is not asked at 1."""

    @field_validator("reward", mode="before")
    @classmethod
    def _accept_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def has_judge(self) -> bool:
        """Whether the critic has a share in the reward, as far as the settings say."""
        return not self.reward or self.reward_weight < 1
