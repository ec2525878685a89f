"""vLLM as a process of ours: its arguments, its start, its end, and what its log says when it fails."""

from drpo_graph.serving.arguments import DEFAULT_HOST, DEFAULT_PORT, KEY_VARIABLE, ServeOptions
from drpo_graph.serving.keys import ServerKey, borrow_key, new_key
from drpo_graph.serving.plan import plan_server
from drpo_graph.serving.process import Server, ServerPlan, find_free_port, start_server

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "KEY_VARIABLE",
    "ServeOptions",
    "Server",
    "ServerKey",
    "ServerPlan",
    "borrow_key",
    "find_free_port",
    "new_key",
    "plan_server",
    "start_server",
]
