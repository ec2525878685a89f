"""Use an optimised prompt: a model with its system prompt and ICL examples, as a LangChain Runnable."""

from drpo_graph.inference.model import AlignedModel
from drpo_graph.inference.prompt_choice import GivenPrompt

__all__ = ["AlignedModel", "GivenPrompt"]
