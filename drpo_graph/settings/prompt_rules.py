"""Settings of what a prompt has to keep to: placeholders, what a rewrite may quote, rewards of the user's own."""

from pydantic import Field, JsonValue, field_validator

from drpo_graph.records import PlaceholderStyle
from drpo_graph.settings.limits import Limits

_AS_ALWAYS: frozenset[str] = frozenset(
    {"placeholders", "placeholder_values", "min_quote_chars", "min_quote_words", "reward", "reward_weight"}
)


class PromptRules(Limits):
    """What rewrites are checked for before they are evaluated, and what scores them besides the critic."""

    placeholders: PlaceholderStyle = "none"
    """How the initial prompt marks what an app fills in: ``format`` ({name}), ``mustache`` ({{name}}), ``dollar``
    ($name), or ``auto``, which finds out; ``none`` takes braces and dollar signs as they are."""
    placeholder_values: dict[str, str] = Field(default_factory=dict)
    """What is filled in where a query brings no value of its own."""
    min_quote_chars: int | None = Field(60, ge=20)
    """A rewrite that repeats so many characters in a row of a query or response it was shown is not used; unset allows
    it. Not so under compat."""
    min_quote_words: int | None = Field(12, ge=4)
    """The same in words."""
    reward: tuple[str, ...] | None = None
    """Reward functions, ``module:function`` each, in the critic's place or mixed with it."""
    reward_weight: float = Field(1.0, gt=0, le=1)
    """Their share of a response's reward; the critic has the rest, and is not asked at 1."""

    @field_validator("reward", mode="before")
    @classmethod
    def _accept_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def has_judge(self) -> bool:
        """Whether the critic has a share in the reward, as far as the settings say."""
        return not self.reward or self.reward_weight < 1

    def rules_by_default(self) -> set[str]:
        """Return the rules that are at their defaults: no part of a fingerprint, so that older runs keep theirs."""
        fields = type(self).model_fields
        return {
            name for name in _AS_ALWAYS if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }


COMPAT_RULES: dict[str, JsonValue] = {"placeholders": "none"}
"""What ``compat="drpo"`` fixes of them: the published search knows no placeholders."""
