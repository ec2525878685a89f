"""The reward models by name."""

from typing import Final

from drpo_graph.errors import UsageError
from drpo_graph.oirl.rewards.additive import AdditiveReward
from drpo_graph.oirl.rewards.base import Arrays, RewardModel
from drpo_graph.oirl.rewards.boosting import LightGBMReward, QuickXGBoostReward, XGBoostReward
from drpo_graph.oirl.rewards.neighbours import NeighboursReward
from drpo_graph.oirl.rewards.network import NetworkReward

REWARD_MODELS: Final[dict[str, type[RewardModel]]] = {
    one.name: one
    for one in (
        NetworkReward,
        NeighboursReward,
        AdditiveReward,
        LightGBMReward,
        QuickXGBoostReward,
        XGBoostReward,
    )
}
DEFAULT_REWARD_MODEL: Final = NetworkReward.name


def make_reward_model(name: str) -> RewardModel:
    """Return a reward model that has learned nothing yet.

    Raises:
        UsageError: there is none of this name.
    """
    return _find(name)()


def load_reward_model(name: str, arrays: Arrays) -> RewardModel:
    """Return a reward model that was saved as arrays.

    Raises:
        UsageError: there is none of this name, or an extra is missing.
        KeyError: an array is missing.
        ValueError: one is not what was saved.
    """
    return _find(name).load(arrays)


def _find(name: str) -> type[RewardModel]:
    if name not in REWARD_MODELS:
        raise UsageError(f"There is no reward model {name!r}: expected one of {', '.join(REWARD_MODELS)}.")
    return REWARD_MODELS[name]
