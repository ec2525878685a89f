"""An agent that learns from its own traffic which system prompt suits which question.

At first the prompts take turns. A checker labels each answer, and what came of it is kept: question, prompt, right or
wrong. From that a router is trained, a small reward model that asks no language model, and swapped into the slot of the
serving agent. From then on the prompt is chosen for each question; where the log shows no gain over the best single
prompt, the router says so and gives that one.

Run ``python examples/query_dependent_agent.py --model local:smollm2``: a minute or two, no key, no GPU (extras
``agents``, ``local``, ``retrieval`` and ``oirl``). So small a model does what a prompt shows it, and little besides:
which of the prompts is best depends on the question.
"""

import argparse
import asyncio
import itertools
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from langchain.agents import create_agent
from langchain_core.runnables import Runnable

from drpo_graph import DRPOError, build_settings
from drpo_graph.agents import AlignmentMiddleware, PromptSlot
from drpo_graph.inference import AlignedModel
from drpo_graph.oirl import Demonstration, Demonstrations, TrainingSettings, train_router
from drpo_graph.parts.choosers import PromptChoice
from drpo_graph.retrieval import make_embeddings
from drpo_graph.safety.private_files import make_private_folder

PROMPT_BY_NAME = {
    "plain": "You are a helpful assistant.",
    "short": "Answer in five words or less. Example: What is the capital of Norway? Oslo.",
    "list": "Answer with a numbered list of steps: 1. first, 2. second, 3. third.",
}
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Germany": "Berlin",
    "Russia": "Moscow",
}
TASKS = tuple(
    f"{verb} {thing}"
    for verb, things in {
        "bake": ("bread", "a cake", "cookies"),
        "clean": ("a window", "an oven", "my shoes"),
        "make": ("tea", "a paper boat", "soup"),
        "paint": ("a wall", "a chair", "a door"),
        "plant": ("a tree", "tomatoes", "a rose"),
        "repair": ("a bicycle", "a lamp", "a shirt"),
    }.items()
    for thing in things
)
MAX_WORDS = 8
"""Of a short answer."""


class Task(NamedTuple):
    """A question, and what is right."""

    question: str
    word: str | None
    """A short answer with it is right; without, a list of steps is."""

    def is_right(self, answer: str) -> bool:
        """Check an answer, as a user's rating or a test would in an app."""
        if self.word is None:
            return re.search(r"^\s*1\.", answer, re.MULTILINE) is not None
        words = re.findall(r"\w+", answer.lower())
        return len(words) <= MAX_WORDS and self.word.lower() in words


class Log(NamedTuple):
    """What was served."""

    task: Task
    prompt_name: str
    is_right: bool
    has_abstained: bool
    """Whether the router saw no gain in a choice."""
    reason: str
    """Why the prompt was chosen."""


class InTurn:
    """Takes the prompts in turn: what is not tried is not learned."""

    name = "in turn"

    def __init__(self) -> None:
        self._names = itertools.cycle(PROMPT_BY_NAME)

    async def achoose(self, query: str) -> PromptChoice:
        """Return the next prompt, whatever is asked."""
        name = next(self._names)
        return PromptChoice(prompt=PROMPT_BY_NAME[name], name=name)


def draw_tasks(seed: int) -> Iterator[Task]:
    """Yield sums, capitals and tasks of a household, in no order, without an end."""
    draw = random.Random(f"{seed}/traffic")
    while True:
        kind = draw.randrange(3)
        if kind == 0:
            first, second = draw.randint(2, 9), draw.randint(2, 9)
            yield Task(f"What is {first} + {second}?", str(first + second))
        elif kind == 1:
            country = draw.choice(tuple(CAPITALS))
            yield Task(f"What is the capital of {country}?", CAPITALS[country])
        else:
            yield Task(f"How do I {draw.choice(TASKS)}?", None)


def make_agent(model: AlignedModel, prompt: Any) -> Runnable[Any, Any]:
    """Return an agent whose prompt is what is given, or chosen by that for each message of the user."""
    middleware: Any = AlignmentMiddleware(prompt)
    return create_agent(model, middleware=[middleware])


async def serve(agent: Runnable[Any, Any], tasks: Sequence[Task], *, at_once: int = 8) -> list[Log]:
    """Answer the questions, and return what came of each."""
    limit = asyncio.Semaphore(at_once)

    async def answer(task: Task) -> Log:
        async with limit:
            message = (await agent.ainvoke({"messages": [("user", task.question)]}))["messages"][-1]
        choice = message.response_metadata.get("system_prompt_choice", {"name": "one for all"})
        is_right = task.is_right(message.text)
        return Log(task, choice["name"], is_right, choice.get("has_abstained", False), choice.get("reason", ""))

    return list(await asyncio.gather(*map(answer, tasks)))


def describe(title: str, logs: Sequence[Log]) -> str:
    """Return the share of right answers, in all and by prompt, a line each."""
    lines = [f"{title}: {_share(logs)}"]
    for name in PROMPT_BY_NAME:
        if own := [one for one in logs if one.prompt_name == name]:
            lines.append(f"  {name}: {_share(own)}")
    if silent := [one for one in logs if one.has_abstained]:
        lines.append(f"  abstained on {len(silent)} of {len(logs)} questions: {silent[0].reason}")
    return "\n".join(lines)


def _share(logs: Sequence[Log]) -> str:
    return f"{sum(one.is_right for one in logs)} of {len(logs)} right"


async def learn(logs: Sequence[Log], path: Path, *, args: argparse.Namespace) -> None:
    """Train a router on what was served, and keep it in a file."""
    rows = [
        Demonstration(
            query=one.task.question,
            prompt=PROMPT_BY_NAME[one.prompt_name],
            outcome=float(one.is_right),
            model=args.model,
            prompt_name=one.prompt_name,
        )
        for one in logs
    ]
    router = await train_router(
        Demonstrations.from_rows(rows),
        settings=TrainingSettings(reward_model=args.reward_model, seed=args.seed),
        embeddings=make_embeddings(args.embeddings),
        embeddings_name=args.embeddings,
    )
    router.save(path)


async def live(args: argparse.Namespace) -> None:
    """Serve with prompts in turn, learn, serve on with the router, and print what came of it."""
    settings = build_settings({"max_outage_s": 0, "probe": False})
    model = AlignedModel(model=args.model, base_url=args.base_url, max_tokens=args.max_tokens, settings=settings)
    slot = PromptSlot(args.folder / "prompt.json", initial=PROMPT_BY_NAME["plain"])
    traffic = draw_tasks(args.seed)
    logs = await serve(make_agent(model, InTurn()), list(itertools.islice(traffic, args.num_first)))
    print(describe("prompts in turn", logs), flush=True)

    path = make_private_folder(args.folder) / "router.npz"
    await learn(logs, path, args=args)
    # The slot is read at each request: an agent that serves with it needs no restart.
    version = slot.swap(path)

    tasks = list(itertools.islice(traffic, args.num_then))
    print(
        describe(f"version {version.version}, by the router", await serve(make_agent(model, slot), tasks)), flush=True
    )
    # The same questions, for a fair comparison; an app would not ask them twice.
    print(describe("the best single prompt", await serve(make_agent(model, version.text), tasks)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve and learn from the command line; 0 when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-5-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument("--embeddings", default="local:all-minilm-l6-v2", help="of questions and prompts")
    parser.add_argument("--reward-model", default="neighbours", help="which learns fast from few answers (default)")
    parser.add_argument("--num-first", type=int, default=240, help="questions while the prompts take turns")
    parser.add_argument("--num-then", type=int, default=60, help="questions after that")
    parser.add_argument("--max-tokens", type=int, default=24, help="longest answer (default: 24)")
    parser.add_argument("--folder", type=Path, default=Path("drpo_runs/router"), help="where slot and router are kept")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        asyncio.run(live(args))
    except KeyboardInterrupt:
        return 130
    except DRPOError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
