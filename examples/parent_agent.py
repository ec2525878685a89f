"""A nightly agent that learns from yesterday: a graph of your own with the search as one of its steps.

::

    collect -> optimise -> deploy        collect: yesterday's badly rated questions become training queries
                                         optimise: drpo_graph's search
                                         deploy: the prompt goes to where the assistant reads it

Run ``python examples/parent_agent.py --model local:smollm2``, stop it anywhere, and run it again: it goes on from
there, and no finished model call is paid for twice. With ``--thread-id`` of another day it starts anew. The search is
on the list of ``drpo runs --checkpoint drpo_runs/agent.sqlite``, and ``drpo show`` and ``drpo events`` know it.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from drpo_graph import (
    DRPOError,
    EmbeddedRun,
    Event,
    RunOptions,
    Settings,
    build_graph,
    build_settings,
    embedded_run,
)
from drpo_graph.display import PlainDisplay
from drpo_graph.records import ROLES

MAX_BAD_RATING = 2

YESTERDAY = [
    ("My flight leaves at 6:10 tomorrow. When should I set the alarm?", 2),
    ("What is a good name for a grey cat?", 5),
    ("Who won the match last night?", 1),
    ("Explain compound interest to a ten-year-old.", 2),
    ("How do I tell my team that the deadline has moved?", 4),
]
"""What the assistant was asked, and how its answers were rated; an agent of yours would read its own log."""


class AgentState(TypedDict, total=False):
    """The parent's own state; the search keeps its state to itself."""

    training_queries: list[str]
    system_prompt: str
    reward: float | None
    deployed_to: str


def build_agent(settings: Settings, prompt_file: Path, run: EmbeddedRun) -> Any:
    """Return the compiled parent."""
    search = build_graph(settings)

    async def collect(state: AgentState) -> AgentState:
        """Pick the failures of yesterday."""
        return {"training_queries": [question for question, rating in YESTERDAY if rating <= MAX_BAD_RATING]}

    async def optimise(state: AgentState) -> AgentState:
        """Run the search as a subgraph: it uses this graph's checkpointer and store, and resumes with it."""
        output = await search.ainvoke({"queries": [*state["training_queries"]]})
        return {"system_prompt": output["system_prompt"], "reward": output["result"]["reward"]}

    async def deploy(state: AgentState) -> AgentState:
        """Store the prompt where the assistant reads it."""
        await asyncio.to_thread(prompt_file.write_text, f"{state['system_prompt']}\n", encoding="utf-8")
        return {"deployed_to": str(prompt_file)}

    graph = StateGraph(AgentState)
    graph.add_node("collect", collect)
    graph.add_node("optimise", optimise)
    graph.add_node("deploy", deploy)
    graph.add_edge(START, "collect")
    graph.add_edge("collect", "optimise")
    graph.add_edge("optimise", "deploy")
    graph.add_edge("deploy", END)
    return graph.compile(checkpointer=run.checkpointer, store=run.store, name="nightly_agent")


async def run_agent(
    settings: Settings, thread_id: str, *, checkpoint_file: Path, prompt_file: Path, show: Callable[[Event], None]
) -> AgentState:
    """Run the agent, or go on with it where its thread stopped, and return its last state."""
    options = RunOptions(checkpoint=checkpoint_file, sinks=(show,), handles_signals=True)
    async with embedded_run(thread_id, options=options) as run:
        agent = build_agent(settings, prompt_file, run)
        await agent.ainvoke(None if run.has_begun else {}, run.config)
        state: AgentState = (await agent.aget_state(run.config)).values
        return state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent from the command line; 0 when the prompt is deployed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-5-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument("--depth", type=int, default=3, help="levels + 1 (default: 3)")
    parser.add_argument("--thread-id", default="nightly", help="names this night's work (default: nightly)")
    parser.add_argument("--checkpoint", type=Path, default=Path("drpo_runs/agent.sqlite"))
    parser.add_argument("--prompt-file", type=Path, default=Path("deployed_prompt.txt"))
    args = parser.parse_args(arguments)
    roles: dict[str, object] = {role: {"model": args.model, "base_url": args.base_url} for role in ROLES}
    try:
        settings = build_settings({"depth": args.depth, "n_actions": 2, "queries_per_level": 2, **roles})
        state = asyncio.run(
            run_agent(
                settings,
                args.thread_id,
                checkpoint_file=args.checkpoint,
                prompt_file=args.prompt_file,
                show=PlainDisplay(sys.stdout).handle,
            )
        )
    except DRPOError as error:
        print(f"stopped: {error} Run the same command again to go on.", file=sys.stderr)
        return 1
    print(f"deployed to {state['deployed_to']}: {state['system_prompt']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
