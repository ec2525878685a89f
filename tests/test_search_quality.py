"""The search climbs, and climbs further than the published one, on worlds whose prompts have a known quality.

Four worlds show that it works; ``scripts/compare_searches.py`` measures how well, with intervals.
"""

from statistics import mean
from typing import NamedTuple

import pytest

from drpo_graph.settings import Settings
from tests.support.searches import fake_settings, run_search
from tests.support.world import INITIAL_PROMPT, World

SEEDS = range(4)
MAX_CALLS = 270
MIN_GAIN = 0.3
"""Points on the scale of 1 to 5; choosing at random among rewrites of the initial prompt gains next to nothing."""


class Figures(NamedTuple):
    """What one search made of the initial prompt."""

    initial: float
    final: float
    num_calls: int


async def search_worlds(settings: Settings) -> list[Figures]:
    figures = []
    for seed in SEEDS:
        world = World(seed)
        run = await run_search(settings, world, world.train_queries)
        final = world.quality(run.result.system_prompt)
        figures.append(Figures(world.quality(INITIAL_PROMPT), final, len(run.transport.requests)))
    return figures
