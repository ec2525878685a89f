"""An agent in the base model's place: its prompt is optimised on what it does, tool calls and all."""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import Runnable
from langgraph.errors import GraphRecursionError

from drpo_graph.errors import DRPOError, ReplyError
from drpo_graph.records import Query
from drpo_graph.runs.work import outside_of_graphs
from drpo_graph.safety.redaction import redact
from drpo_graph.safety.texts import shorten

_MAX_AGENTS = 32
"""Kept, of the prompts that were tried last."""
_MAX_ERROR = 300


class AgentResponder:
    """Asks an agent, a compiled LangGraph with a state of ``messages``, under each prompt that is tried.

    Each query is a run of its own: it has a thread of its own, and nothing of the search's configuration. What the
    agent does on its way is a part of the response: critic, reward function and optimizer see it. Its model calls are
    its own: no budget and no ledger of ours holds them. An agent that fails, takes too many steps, or waits for a
    person leaves the query unscored, with the reason.

    Args:
        make_agent: Builds the agent for a prompt; the last 32 are kept. What it raises stops the run.
        recursion_limit: Most steps of one run, as LangGraph counts them.
        identity: Tells this agent from others, such as its model and tools, in the run's fingerprint: a run resumes
            with the agent that it began with.
    """

    STORED_NAME: ClassVar[str] = "drpo_graph.agents.AgentResponder"

    def __init__(
        self,
        make_agent: Callable[[str], Runnable[Any, Any]],
        *,
        recursion_limit: int = 25,
        identity: str | None = None,
    ) -> None:
        self.identity = identity
        self._make_agent = make_agent
        self._recursion_limit = recursion_limit
        self._agents: OrderedDict[str, Runnable[Any, Any]] = OrderedDict()

    async def respond(self, prompt: str, query: Query) -> list[AnyMessage]:
        """Return the messages that the agent adds to a query and its history.

        Raises:
            ReplyError: it failed, took too many steps, or waits for a person.
        """
        agent, given = self._agent_for(prompt), _as_messages(query)
        config: Any = {"recursion_limit": self._recursion_limit, "configurable": {"thread_id": uuid.uuid4().hex}}
        try:
            with outside_of_graphs():
                state = await agent.ainvoke({"messages": given}, config)
        except DRPOError:
            raise
        except GraphRecursionError as error:
            told = f"no answer within {self._recursion_limit} steps"
            raise ReplyError(f"query {query.id!r}: the agent: {told}", kind="truncated") from error
        except Exception as error:
            told = shorten(redact(f"{type(error).__name__}: {error}"), _MAX_ERROR)
            raise ReplyError(f"query {query.id!r}: the agent failed: {told}", kind="unavailable") from error
        if not isinstance(state, Mapping) or not isinstance(state.get("messages"), list):
            raise ReplyError(f"query {query.id!r}: the agent's state has no list of messages")
        if state.get("__interrupt__"):
            raise ReplyError(f"query {query.id!r}: the agent waits for a person", kind="unavailable")
        known = {one.id for one in given}
        return [one for one in state["messages"] if one.id not in known]

    def _agent_for(self, prompt: str) -> Runnable[Any, Any]:
        if prompt not in self._agents:
            self._agents[prompt] = self._make_agent(prompt)
        self._agents.move_to_end(prompt)
        while len(self._agents) > _MAX_AGENTS:
            self._agents.popitem(last=False)
        return self._agents[prompt]


def _as_messages(query: Query) -> list[AnyMessage]:
    """Return a query with its history; each has an id, by which it is known again in the agent's state."""
    kinds = {"user": HumanMessage, "assistant": AIMessage}
    before = [kinds[turn.role](turn.content, id=uuid.uuid4().hex) for turn in query.history]
    return [*before, HumanMessage(query.text, id=uuid.uuid4().hex)]
