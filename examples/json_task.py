"""A task that a program can check: answer with a JSON object that has the keys asked for.

A reward function stands in the critic's place, so only two models are asked: the one that answers, and the one that
writes prompts. The search trains on some requests and chooses on others; then the initial prompt and the one that was
chosen answer a third set, which it has never seen, and the share of right answers is told with 95% bootstrap intervals,
whatever it is.

Run ``python examples/json_task.py --model local:smollm2``: some minutes, no key, no GPU. So small a model shows that
everything works together, not that prompts get better. From the command line the same reward function is
``drpo optimize requests.jsonl --model MODEL --reward json_task:reward_json``, in this folder.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from langgraph.store.memory import InMemoryStore

from drpo_graph import (
    DRPOError,
    Parts,
    Query,
    ReplyError,
    Reward,
    RunOptions,
    Settings,
    build_context,
    optimize,
    resume,
)
from drpo_graph import build_settings as build_settings
from drpo_graph.errors import RunExistsError
from drpo_graph.parts.parsing import extract_json
from drpo_graph.records import ROLES
from drpo_graph.search.validation import mean_interval

INITIAL_PROMPT = "Answer with a JSON object that has the keys asked for."
KEYS_BY_SUBJECT = {
    "animal": ("name", "legs", "food"),
    "city": ("name", "country", "river"),
    "book": ("title", "author"),
    "meal": ("name", "ingredients", "minutes"),
    "sport": ("name", "players"),
    "tool": ("name", "use", "material"),
}
ADJECTIVES_BY_KIND = {
    "train": ("small", "old", "famous"),
    "choice": ("quiet", "rare"),
    "test": ("large", "new", "odd", "cheap"),
}
NUM_HELD_OUT = 24


class Success(NamedTuple):
    """How often answers were right."""

    share: float
    low: float
    high: float
    """Bounds of the 95% bootstrap interval."""

    def __str__(self) -> str:
        return f"{self.share:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Outcome(NamedTuple):
    """What the example tells: shares of right answers on requests that the search has not seen."""

    system_prompt: str
    before: Success
    after: Success
    difference: Success

    def __str__(self) -> str:
        return (
            f"prompt: {self.system_prompt}\n"
            f"held-out success before: {self.before}\nheld-out success after: {self.after}\n"
            f"difference: {self.difference}"
        )


def make_requests(kind: str, *, number: int, seed: int) -> list[Query]:
    """Return requests whose tags are the keys that the answer must have; no two of them are alike.

    Args:
        kind: Begins their ids; requests of different kinds are different.
        number: How many.
        seed: Of the draw.
    """
    chosen = [(subject, adjective) for subject in KEYS_BY_SUBJECT for adjective in ADJECTIVES_BY_KIND[kind]]
    random.Random(f"{seed}/{kind}").shuffle(chosen)
    requests = []
    for place, (subject, adjective) in enumerate(chosen[:number]):
        keys = KEYS_BY_SUBJECT[subject]
        article = "an" if adjective[0] in "aeiou" else "a"
        text = f"Describe {article} {adjective} {subject}. Reply with a JSON object with the keys {', '.join(keys)}."
        requests.append(Query(id=f"{kind}-{place:02d}", text=text, kind=subject, tags=keys))
    return requests


async def reward_json(query: Query, response: str) -> Reward:
    """Return 5 for a JSON object with the keys asked for and no others, less the further the answer is from one."""
    try:
        found = extract_json(response)
    except ReplyError:
        return Reward(score=1.0, feedback="The answer holds no JSON object; it must be one, and nothing else.")
    missing = [key for key in query.tags if key not in found]
    extra = [key for key in found if key not in query.tags]
    score = 5.0 - 2.0 * len(missing) / max(len(query.tags), 1) - (0.5 if extra else 0.0)
    remarks = [f"missing keys: {', '.join(missing)}"] if missing else []
    remarks += [f"keys that nobody asked for: {', '.join(extra[:5])}"] if extra else []
    return Reward(score=score, feedback="; ".join(remarks) or "A JSON object with the keys asked for.")


def is_right(query: Query, response: str) -> bool:
    """Return whether an answer holds a JSON object that has every key asked for."""
    try:
        return set(query.tags) <= set(extract_json(response))
    except ReplyError:
        return False


async def answer_all(settings: Settings, prompt: str, queries: Sequence[Query]) -> list[float]:
    """Return 1 for each request that is answered rightly under a prompt, else 0, through the clients of a search."""
    context = build_context(settings, store=InMemoryStore(), critic=reward_json)
    base = (await context.session("held-out")).models.base

    async def answer(query: Query) -> float:
        sample = await base.respond(base.response_format.render(system_prompt=prompt, query=query.text))
        # No answer is no right answer.
        return float(sample.value is not None and is_right(query, sample.value))

    return list(await asyncio.gather(*map(answer, queries)))


def summarise(rights: Sequence[float], *, seed: int) -> Success:
    """Return the mean with its interval."""
    interval = mean_interval(rights, generator=random.Random(f"{seed}/success"))
    share = sum(rights) / len(rights)
    return Success(share, *(interval or (share, share)))


async def run_task(settings: Settings, *, folder: Path, thread_id: str, num_held_out: int = NUM_HELD_OUT) -> Outcome:
    """Return what the search found, measured on requests that it has not seen.

    Args:
        settings: What to do, with the models.
        folder: Where the run is kept; called again, it goes on or returns its result.
        thread_id: Names the run.
        num_held_out: Requests to measure on.
    """
    options, parts = RunOptions(checkpoint=folder / "json_task.sqlite"), Parts(critic=reward_json)
    training, choice = (make_requests(kind, number=18, seed=settings.seed) for kind in ("train", "choice"))
    try:
        result = await optimize(
            training, settings=settings, validation=choice, thread_id=thread_id, options=options, parts=parts
        )
    except RunExistsError:
        changes = settings.model_dump()
        result = await resume(thread_id, options=options, parts=parts, changes=changes, queries=training)
    held_out = make_requests("test", number=num_held_out, seed=settings.seed)
    before = await answer_all(settings, settings.initial_prompt, held_out)
    after = await answer_all(settings, result.system_prompt, held_out)
    differences = [one - other for one, other in zip(after, before, strict=True)]
    shares = [summarise(rights, seed=settings.seed) for rights in (before, after, differences)]
    return Outcome(result.system_prompt, *shares)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the task from the command line; 0 when it was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="provider:model, e.g. openai:gpt-5-mini or local:smollm2")
    parser.add_argument("--base-url", help="OpenAI-compatible API, ends in /v1")
    parser.add_argument("--depth", type=int, default=3, help="levels + 1 (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("drpo_runs"))
    parser.add_argument("--thread-id", default="json-task", help="names the run (default: json-task)")
    args = parser.parse_args(arguments)
    roles: dict[str, object] = {role: {"model": args.model, "base_url": args.base_url} for role in ROLES}
    roles["base"] = {"model": args.model, "base_url": args.base_url, "max_tokens": 96}
    roles["optimizer"] = {"model": args.model, "base_url": args.base_url, "max_tokens": 256}
    sizes = {"depth": args.depth, "n_actions": 2, "beam_size": 2, "queries_per_level": 3, "max_concurrency": 8}
    bounds = {"max_rationale_chars": 100, "max_prompt_chars": 300, "max_critique_chars": 2000}
    try:
        settings = build_settings({"initial_prompt": INITIAL_PROMPT, **sizes, **bounds, **roles})
        print(asyncio.run(run_task(settings, folder=args.folder, thread_id=args.thread_id)))
    except DRPOError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
