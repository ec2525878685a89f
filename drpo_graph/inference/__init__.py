"""Use an optimised prompt: a model with its system prompt and ICL examples, as a LangChain Runnable."""

from drpo_graph.inference.model import AlignedModel
from drpo_graph.inference.prompt_choice import ChosenPrompt, GivenPrompt
from drpo_graph.inference.routers import load_router

__all__ = ["AlignedModel", "ChosenPrompt", "GivenPrompt", "load_router"]
