"""Prompt-OIRL: the right prompt for each query, learned from logs, without asking a model."""

from importlib.util import find_spec

from drpo_graph.errors import UsageError
from drpo_graph.safety.installing import tell_install

if find_spec("numpy") is None:
    raise UsageError(f"Prompt-OIRL and --n-proposed need the extra `oirl`. Run: {tell_install('oirl')}.")

from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.screening import RewardScreen, open_screen
from drpo_graph.oirl.tables import load_demonstrations, save_demonstrations
from drpo_graph.oirl.training import TrainingSettings, train_router

__all__ = [
    "Demonstration",
    "Demonstrations",
    "PromptRouter",
    "RewardScreen",
    "TrainingSettings",
    "load_demonstrations",
    "open_screen",
    "save_demonstrations",
    "train_router",
]
