"""A run that is started inside another graph's node, or an agent's tool, is a run of its own.

LangGraph hands a node's configuration down through a context variable, and a graph that is invoked there becomes a
subgraph: it would be checkpointed among the parent's checkpoints, under the parent's thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.runnables.config import var_child_runnable_config


@contextmanager
def outside_of_graphs() -> Iterator[None]:
    """Let graphs that are invoked in the block, by this task, be roots, whatever the task is part of."""
    token = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
