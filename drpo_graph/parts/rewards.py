"""Reward functions of the user's own: several with weights, in the critic's place or mixed with it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, cast

from pydantic import ValidationError

from drpo_graph.calls.roles import Models
from drpo_graph.errors import ReplyError, SettingsError
from drpo_graph.parts.checkers import names_own_code
from drpo_graph.parts.identity import name_of
from drpo_graph.parts.loading import load_function
from drpo_graph.parts.own_answers import clean_record, tell_said
from drpo_graph.parts.own_code import ask_judge
from drpo_graph.parts.protocols import Critic, Reward, RewardFunction
from drpo_graph.parts.stock_rewards import STOCK_REWARDS, find_stock_reward
from drpo_graph.records import MAX_SCORE, MIN_SCORE, Critique, MetricScore, MetricSelection, Query
from drpo_graph.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class NamedReward:
    """A reward function with the name that the optimizer sees its score under."""

    function: RewardFunction
    name: str = ""
    """The function's own when empty."""
    weight: float = 1.0
    """Its share among the reward functions."""
    timeout_s: float | None = None
    """Longest wait for it; the settings' ``timeout_s`` when absent."""
    expects: tuple[type[Exception], ...] = ()
    """What it may raise besides ``ReplyError``: the response stays unscored then. Anything else stops the run."""

    @property
    def label(self) -> str:
        """Its name, or that of its function."""
        return self.name or name_of(self.function).rpartition(".")[2]


class MixedReward:
    """Reward functions beside the critic: a response's reward is the weighted mean of all their scores."""

    __slots__ = ("rewards", "weight")

    def __init__(self, *rewards: RewardFunction | NamedReward, weight: float = 0.5) -> None:
        """Mix reward functions with the critic.

        Args:
            rewards: At least one, with distinct names.
            weight: The share of them all; the critic has the rest, and is not asked at 1.

        Raises:
            SettingsError: there is none, two share a name, or a weight cannot be used.
        """
        named = tuple(one if isinstance(one, NamedReward) else NamedReward(one) for one in rewards)
        labels = [one.label for one in named]
        if not named or len(set(labels)) < len(labels):
            raise SettingsError(f"MixedReward: expected reward functions with distinct names, got {labels}.")
        if not 0 < weight <= 1 or not all(0 < one.weight < float("inf") for one in named):
            raise SettingsError("MixedReward: expected a weight above 0 and up to 1, and functions' weights above 0.")
        self.rewards = named
        self.weight = weight

    @property
    def has_critic(self) -> bool:
        """Whether the critic has a share."""
        return self.weight < 1


CriticPart = Critic | RewardFunction | NamedReward | MixedReward
"""What a user may put in the critic's place."""


@dataclass(frozen=True, slots=True)
class MixedCritic:
    """Asks reward functions, then the critic, unless one of the functions leaves the response unscored."""

    STORED_NAME: ClassVar[str] = "drpo_graph.rewards.MixedCritic"

    mixed: MixedReward
    critic: Critic | None
    timeout_s: float

    @property
    def functions(self) -> tuple[RewardFunction, ...]:
        """The reward functions."""
        return tuple(one.function for one in self.mixed.rewards)

    @property
    def identity(self) -> str:
        """What makes up the mix, as a part of the run's fingerprint."""
        return json.dumps(
            [self.mixed.weight, [[one.label, name_of(one.function), one.weight] for one in self.mixed.rewards]]
        )

    async def critique(self, query: Query, response: str, *, selection: MetricSelection, models: Models) -> Critique:
        """Return the scores of all, each with its share in the reward."""
        given = [
            check_reward(await ask_reward(one, query, response, timeout_s=self.timeout_s), name=one.label)
            for one in self.mixed.rewards
        ]
        share = self.mixed.weight / sum(one.weight for one in self.mixed.rewards)
        scores = [
            MetricScore(metric=one.label, score=reward.score, rationale=reward.feedback, weight=one.weight * share)
            for one, reward in zip(self.mixed.rewards, given, strict=True)
        ]
        if self.critic is None:
            return Critique(scores=tuple(scores))
        judged = await self.critic.critique(query, response, selection=selection, models=models)
        rest = (1 - self.mixed.weight) / sum(one.weight for one in judged.scores)
        return Critique(
            scores=(*(one.model_copy(update={"weight": one.weight * rest}) for one in judged.scores), *scores)
        )


async def ask_reward(one: NamedReward, query: Query, response: str, *, timeout_s: float) -> Reward:
    """Return what a reward function says of a response; ``timeout_s`` is for one that has none of its own.

    Raises:
        ReplyError: it gave nothing in time, or raised this or what it may raise.
        RewardError: it raised anything else.
    """
    return await ask_judge(
        one.function,
        query,
        response,
        called=f"the reward function {one.label!r}",
        query=query,
        timeout_s=one.timeout_s if one.timeout_s is not None else timeout_s,
        expects=one.expects,
        expects_setting="NamedReward(..., expects=...)",
    )


def check_reward(reward: object, *, name: str = "") -> Reward:
    """Return a reward whose score is one; a bare number, or a mapping, is a reward, too.

    Raises:
        ReplyError: it is none, or lies outside 1 to 5.
    """
    if (taken := _take_reward(reward)) is None:
        told, expected = tell_said(reward), "a Reward or a number"
    elif not MIN_SCORE <= taken.score <= MAX_SCORE:
        told, expected = repr(taken.score), f"{MIN_SCORE} to {MAX_SCORE}"
    else:
        return taken
    called = f" {name!r}" if name else ""
    raise ReplyError(f"the reward function{called} gave {told}, expected {expected}", kind="reward_error")


def _take_reward(said: object) -> Reward | None:
    if isinstance(said, Real) and not isinstance(said, bool):
        try:
            return Reward(score=float(said))
        except (OverflowError, ValueError):
            return None
    try:
        return clean_record(Reward.model_validate(said))
    except ValidationError:
        return None


def replaces_critic(critic: CriticPart | None) -> bool:
    """Return whether reward functions alone score responses, so that there are no metrics to select."""
    if isinstance(critic, MixedReward):
        return not critic.has_critic
    return critic is not None and not hasattr(critic, "critique")


def choose_critic(settings: Settings, critic: CriticPart | None) -> CriticPart | None:
    """Return the critic that is given, or the reward functions that the settings name.

    Raises:
        SettingsError: there are both, or a function cannot be loaded.
    """
    if not settings.reward:
        return critic
    if critic is not None:
        raise SettingsError(
            "The settings name reward functions, and a critic is given as a part too: give one of them."
        )
    return MixedReward(*map(load_reward, settings.reward), weight=settings.reward_weight)


def check_named_again(stored: Settings, changes: Mapping[str, object]) -> None:
    """Do nothing when a resumed run names no reward function, or its caller does so again.

    A checkpoint may come from somebody else, and these names say which code is imported: they are not taken from it.

    Raises:
        SettingsError: the caller names none.
    """
    if stored.reward and any(map(names_own_code, stored.reward)) and "reward" not in changes:
        flags = " ".join(f"--reward {one}" for one in stored.reward)
        raise SettingsError(
            f"This run's reward functions are {', '.join(stored.reward)}. A checkpoint's word is not enough to load "
            f"code: name them again with {flags}."
        )


def load_reward(spec: str) -> RewardFunction | NamedReward:
    """Return the reward of a name: one that needs no code, or the function that ``module:function`` names.

    The working folder is searched first.

    Raises:
        SettingsError: there is none.
    """
    if (stock := find_stock_reward(spec)) is not None:
        return NamedReward(stock, spec)
    if ":" not in spec:
        raise SettingsError(f"Reward {spec!r}: expected module:function, or one of {', '.join(STOCK_REWARDS)}.")
    function = load_function(
        spec,
        what="Reward",
        example="my_rewards:is_json",
        signature="(query, response)`, which returns a Reward",
        num_given=2,
    )
    return cast(RewardFunction, function)
