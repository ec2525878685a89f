"""A run that is started inside another graph's node, or an agent's tool, is a run of its own.

LangChain hands a node's configuration down through a context variable. A graph that is invoked there would take over
the caller's callbacks, its metadata, which are stored with each checkpoint, and its limit of concurrent steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.runnables.config import var_child_runnable_config


@contextmanager
def outside_of_graphs() -> Iterator[None]:
    """Let graphs that are invoked in the block, by this task, be configured by their caller alone."""
    token = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
