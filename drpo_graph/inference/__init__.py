"""Use an optimised prompt: a model with its system prompt and ICL examples, as a LangChain Runnable."""

from drpo_graph.inference.model import MAX_NUM_ICL, AlignedModel, check_num_icl
from drpo_graph.inference.prompt_choice import ChosenPrompt, GivenPrompt, ModelPrompt, PromptSource, choose_prompt

__all__ = [
    "MAX_NUM_ICL",
    "AlignedModel",
    "ChosenPrompt",
    "GivenPrompt",
    "ModelPrompt",
    "PromptSource",
    "check_num_icl",
    "choose_prompt",
]
