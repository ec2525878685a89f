"""An agent with tools whose prompt is optimised on its own traces.

A shop's assistant answers what an order comes to: it has to look up prices and what is in stock. A reward function
checks the answer and, in the trace, whether the stock was looked up; what was missing is told to the optimizer, which
sees the trace too. The search trains on some orders and chooses on others.

Run ``python examples/optimize_agent.py --model openai:gpt-5-mini``; the model must be able to call tools.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from drpo_graph import DRPOError, Parts, Query, Reward, RunOptions, RunResult, Settings, build_settings, optimize
from drpo_graph.agents import AgentResponder, open_chat_model
from drpo_graph.parts.trajectories import read_answer_of
from drpo_graph.records import ROLES

INITIAL_PROMPT = "You are the assistant of a shop."
PRICES = {"lamp": 30, "chair": 45, "table": 120, "rug": 75, "shelf": 60, "clock": 25}
STOCK = {"lamp": 4, "chair": 2, "table": 1, "rug": 0, "shelf": 3, "clock": 9}


def find_price(item: str) -> int:
    """Return what one piece of an item costs, in euros."""
    return PRICES[item.lower()]


def count_stock(item: str) -> int:
    """Return how many pieces of an item are in stock."""
    return STOCK[item.lower()]


def make_orders(numbers: Sequence[int], kind: str) -> list[Query]:
    """Return a question for each item and number of pieces; the tags are item and number."""
    return [
        Query(id=f"{kind}-{item}-{number}", text=f"What do {number} of '{item}' cost?", tags=(item, str(number)))
        for number in numbers
        for item in PRICES
    ]


async def reward_order(query: Query, response: str) -> Reward:
    """Return 5 for an answer that tells the right sum, or that there are too few, by an agent that has looked."""
    item, number = query.tags[0], int(query.tags[1])
    answer, remarks = read_answer_of(response), []
    if "[tool call] count_stock" not in response:
        remarks.append("it did not look up with count_stock whether there are enough")
    if STOCK[item] < number:
        if not re.search(r"stock|only|not enough|unavailable", answer, re.IGNORECASE):
            remarks.append(f"it did not say that only {STOCK[item]} are in stock")
    elif str(number * PRICES[item]) not in re.findall(r"\d+", answer):
        remarks.append(f"the right sum is {number * PRICES[item]}")
    return Reward(score=5.0 - 2.0 * len(remarks), feedback="; ".join(remarks) or "Looked up, and right.")


async def improve(settings: Settings, model: BaseChatModel, *, folder: Path) -> RunResult:
    """Return what a search finds for an agent on this model."""

    def make_agent(prompt: str) -> Runnable[Any, Any]:
        return create_agent(model, tools=[find_price, count_stock], system_prompt=prompt)

    return await optimize(
        make_orders((1, 3), "train"),
        settings=settings,
        validation=make_orders((2,), "choice"),
        options=RunOptions(checkpoint=folder / "agent.sqlite"),
        parts=Parts(responder=AgentResponder(make_agent, identity=settings.base.model), critic=reward_order),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Optimise the agent's prompt from the command line; 0 when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="provider:model, of the agent and of the one that writes prompts"
    )
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument("--depth", type=int, default=3, help="levels + 1 (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("drpo_runs"))
    args = parser.parse_args(arguments)
    roles: dict[str, object] = {role: {"model": args.model, "base_url": args.base_url} for role in ROLES}
    sizes = {"depth": args.depth, "n_actions": 2, "beam_size": 2, "queries_per_level": 4, "max_concurrency": 8}
    try:
        settings = build_settings({"initial_prompt": INITIAL_PROMPT, **sizes, **roles})
        model = open_chat_model(args.model, base_url=args.base_url)
        result = asyncio.run(improve(settings, model, folder=args.folder))
    except DRPOError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print(f"prompt: {result.system_prompt}\nreward: {result.reward}, initially {result.initial_reward}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
