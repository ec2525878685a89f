"""Runs that were stored by the version before the package had rooms, and how they were begun.

The names of this module and of what stands in it are a part of what is stored: they must stay.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from drpo_graph import MixedReward, Parts, Query, Reward, RunOptions, optimize, resume
from drpo_graph.icl import optimize_icl, resume_icl
from drpo_graph.parts.responders import OnePromptOfApp
from drpo_graph.records import ICLExample, ICLResult, RunResult
from drpo_graph.settings.layers import build_settings
from tests.support.fake_server import Reply, Responder
from tests.support.oracle import build_responder
from tests.support.world import INITIAL_PROMPT, World, prompt_with_levels

STORED = Path(__file__).parents[1] / "runs" / "stored_runs.sqlite.xz"
WORLD = World(seed=3)
NUM_CALLS = {"search": 11, "mixed": 11, "reward": 3, "app": 7, "icl": 4}
"""After how many calls each run was stopped."""


def make_models() -> Responder:
    """Return what answers as the models of all these runs."""
    world = build_responder(seed=3)

    def respond(body: dict[str, object]) -> Reply:
        is_for_icl = '"new_response"' in str(body["messages"])
        return Reply([json.dumps({"analysis": "a", "new_response": "Better."})]) if is_for_icl else world(body)

    return respond


async def brief(query: Query, response: str) -> Reward:
    """Return a reward for few words."""
    return Reward(score=max(1.0, 5 - len(response) / 100), feedback="shorter")


async def run_app(prompts: Mapping[str, str], query: Query) -> str:
    """Return what an app answers whose two prompts are joined."""
    return WORLD.respond(prompts["plan"] + "\n" + prompts["write"], query.text)


PARTS = {
    "search": Parts(),
    "mixed": Parts(critic=MixedReward(brief, weight=0.5)),
    "reward": Parts(critic=brief),
    "app": Parts(responder=OnePromptOfApp(run_app, "plan", {"plan": INITIAL_PROMPT, "write": prompt_with_levels({})})),
}


async def begin(kind: str, folder: Path, base_url: str, *, max_calls: int | None) -> RunResult | ICLResult:
    """Start one of the runs; it may make so many calls."""
    settings = build_settings(
        {
            "model": "openai:world",
            "base_url": base_url,
            "probe": False,
            "initial_prompt": INITIAL_PROMPT,
            "depth": 3,
            "n_actions": 2,
            "beam_size": 2,
            "queries_per_level": 1,
            "max_concurrency": 1,
            # The default of the version that stored them.
            "max_reply_attempts": 2,
            "max_calls": max_calls,
        }
    )
    options = RunOptions(checkpoint=folder / "runs.sqlite", writes_files=False)
    if kind == "icl":
        examples = [ICLExample(query=query, response="Yes.") for query in WORLD.train_queries[:2]]
        return await optimize_icl(examples, settings=settings, num_iters=2, thread_id=kind, options=options)
    queries = WORLD.train_queries[:4]
    return await optimize(queries, settings=settings, thread_id=kind, options=options, parts=PARTS[kind])


async def go_on(kind: str, folder: Path, base_url: str) -> RunResult | ICLResult:
    """Resume one of them, without a limit."""
    options = RunOptions(checkpoint=folder / "runs.sqlite", writes_files=False)
    changes = {"base_url": base_url, "max_calls": None}
    if kind == "icl":
        return await resume_icl(kind, options=options, changes=changes)
    return await resume(kind, options=options, changes=changes, parts=PARTS[kind])
