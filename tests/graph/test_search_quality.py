"""The search climbs, and climbs further than the published one, on worlds whose prompts have a known quality.

In one world luck decides as much as the search does, so the mean over several is compared; how much better it is, with
intervals, is measured by ``scripts/compare_searches.py``.
"""

from statistics import mean
from typing import NamedTuple

import pytest

from drpo_graph.settings.settings import Settings
from tests.support.searches import fake_settings, run_search
from tests.support.world import INITIAL_PROMPT, World

SEEDS = range(6)
MAX_CALLS = 270
# Without levels added by easy ones, these depths keep within the calls in each of the worlds.
OURS = fake_settings(depth=15, max_depth_increase=0)
PUBLISHED = fake_settings(compat="drpo", beam_size=2, n_actions=3, depth=20, max_depth_increase=0)


class Figures(NamedTuple):
    """What a search came to in one world."""

    initial: float
    """True quality of the initial prompt on held-out queries, 1 to 5."""
    final: float
    """The same of the delivered prompt."""
    num_calls: int


async def run_in_worlds(settings: Settings) -> list[Figures]:
    figures = []
    for seed in SEEDS:
        world = World(seed)
        run = await run_search(settings, world, world.train_queries)
        final = world.quality(run.result.system_prompt)
        figures.append(Figures(world.quality(INITIAL_PROMPT), final, len(run.transport.requests)))
    return figures


@pytest.mark.slow
async def test_search_improves_the_initial_prompt_and_beats_the_published_search() -> None:
    ours, published = await run_in_worlds(OURS), await run_in_worlds(PUBLISHED)
    assert max(one.num_calls for one in [*ours, *published]) <= MAX_CALLS
    gains = [one.final - one.initial for one in ours]
    assert min(gains) > 0.2, gains
    assert mean(gains) > 0.5, gains
    assert mean(one.final for one in ours) > mean(one.final for one in published)
