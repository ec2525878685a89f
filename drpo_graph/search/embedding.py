"""What a process that runs graphs of ours inside a graph of its own does around their runs."""

from abc import ABC, abstractmethod

from langgraph.config import get_config
from langgraph.store.base import BaseStore

from drpo_graph.search.session import RunContext
from drpo_graph.storage.run_list import RunKind

# What begins so is handed down to every node, and stays out of checkpoints and traces.
EMBEDDING_KEY = "__drpo_embedding"
"""Where an invocation's ``configurable`` has its embedding."""


class Embedding(ABC):
    """Holds a place of runs for one invocation of a graph around ours, and keeps its list of runs true."""

    store: BaseStore
    """Where texts and ledgers of its runs stand."""

    @abstractmethod
    def lend(self, context: RunContext, kind: RunKind) -> RunContext:
        """Return the context, bound to this place, its sinks and its stop signal: always the same for the same one."""

    @abstractmethod
    async def flush(self) -> None:
        """Store what has changed of the list of runs."""

    @abstractmethod
    def note_failure(self, run_id: str, error: Exception) -> None:
        """Note why a run has stopped; one without a name had not begun."""


def find_embedding() -> Embedding | None:
    """Return the embedding that the running node is invoked in, if any."""
    found = get_config().get("configurable", {}).get(EMBEDDING_KEY)
    return found if isinstance(found, Embedding) else None
