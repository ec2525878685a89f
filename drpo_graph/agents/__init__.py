"""Optimised prompts in LangChain agents: a middleware, a slot whose prompt is swapped while serving, a tool,
and an agent that is optimised itself.

It needs the extra ``agents``.
"""

from drpo_graph.agents.chat_models import open_chat_model
from drpo_graph.agents.middleware import AlignmentMiddleware
from drpo_graph.agents.optimize_tool import ToolRules, make_optimize_tool
from drpo_graph.agents.prompt_slot import PromptSlot, SlotVersion
from drpo_graph.agents.responder import AgentResponder
from drpo_graph.agents.swapping import Swap, SwapRule, swap_if_better

__all__ = [
    "AgentResponder",
    "AlignmentMiddleware",
    "PromptSlot",
    "SlotVersion",
    "Swap",
    "SwapRule",
    "ToolRules",
    "make_optimize_tool",
    "open_chat_model",
    "swap_if_better",
]
