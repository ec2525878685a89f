"""The graph against the plain restatement of the search: the same tree, rewards, beams and result, on many worlds."""

from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.errors import SearchStalledError
from drpo_graph.records import RunResult
from drpo_graph.storage.archive import Archive
from drpo_graph.storage.tree import creation_order
from tests.reference_search import Found, search
from tests.support.oracle import Oracle, OracleTransport
from tests.support.searches import fake_settings, run_search
from tests.support.world import World

SEEDS = range(20)
FEW_SEEDS = range(4)
NUM_QUICK = 5
"""Worlds of each case in the default run; the others are run with the slow tests."""


@dataclass(frozen=True)
class Case:
    """One kind of search and the worlds it runs in."""

    values: dict[str, Any]
    easy_rate: float = 0.25
    missing_rate: float = 0.1
    num_queries: int = 30
    seeds: range = field(default=SEEDS)

    def world(self, seed: int) -> World:
        """Return the world of a seed."""
        return World(
            seed,
            num_queries=self.num_queries + 1,
            num_heldout=1,
            easy_rate=self.easy_rate,
            missing_rate=self.missing_rate,
        )

    def settings(self, seed: int) -> Any:
        """Return the settings of a seed."""
        return fake_settings(seed=seed, **self.values)


def compat(beam_size: int, n_actions: int, depth: int, **values: Any) -> dict[str, Any]:
    """Return values for the published search."""
    return {"compat": "drpo", "beam_size": beam_size, "n_actions": n_actions, "depth": depth, **values}


def ours(num: int, policy: str, keeps: bool, **values: Any) -> dict[str, Any]:
    """Return values for a search of our own: ``num`` queries per level, ``pool+`` being a larger pool."""
    return {
        "queries_per_level": num,
        "query_policy": policy.rstrip("+"),
        "pool_size": num + 2 if policy == "pool+" else num,
        "keep_parents": keeps,
        "depth": 5 if num == 1 else 3,
        "max_depth_increase": 1 if num == 1 else 2,
        "n_actions": 2,
        # With several queries a mean above 4.5 would hardly ever come.
        "skip_threshold": 4.5 if num == 1 else 3.6,
        "reward_aggregate": "last" if policy == "pool" else "auto",
        **values,
    }


CASES = {
    "compat-1x1": Case(compat(1, 1, 6, max_depth_increase=3)),
    "compat-2x3": Case(compat(2, 3, 6, max_depth_increase=2)),
    "compat-5x4": Case(compat(5, 4, 5, max_depth_increase=1)),
    "compat-2x3-queries-run-out": Case(compat(2, 3, 6), num_queries=4),
    **{
        f"ours-{num}-{policy}{'-keep' if keeps else ''}": Case(
            ours(num, policy, keeps), missing_rate=0.1 if num == 1 else 0.2
        )
        for num, policy, keeps in product((1, 5), ("stream", "pool", "pool+"), (True, False))
    },
    "few-queries-left-over": Case(ours(3, "stream", True, beam_size=3), num_queries=8, seeds=FEW_SEEDS),
    "pool-larger-than-dataset": Case(ours(2, "pool", True, pool_size=50), num_queries=4, seeds=FEW_SEEDS),
    "few-training-queries": Case(ours(2, "stream", True, num_queries=6), seeds=FEW_SEEDS),
    "path-sum": Case(ours(2, "stream", False, reward_aggregate="sum"), seeds=FEW_SEEDS),
    "path-last": Case(ours(2, "stream", True, reward_aggregate="last"), seeds=FEW_SEEDS),
    "stochastic": Case(
        ours(2, "pool+", True, beam_sampling="stochastic", beam_temperature=0.5, beam_temperature_decay=0.7),
        seeds=FEW_SEEDS,
    ),
    "min-reward": Case(ours(2, "pool+", True, min_reward=3.2, beam_size=4), seeds=FEW_SEEDS),
    "stop-reward": Case(ours(2, "stream", True, stop_reward=3.4, depth=6), seeds=FEW_SEEDS),
    "equal-prompts-stay": Case(ours(2, "pool", True, deduplicate=False, beam_size=4), seeds=FEW_SEEDS),
    "short-history": Case(ours(1, "pool+", True, history_window=2, depth=7), seeds=FEW_SEEDS),
    "worst-critiques-only": Case(ours(4, "pool", True, max_critiques_shown=2), seeds=FEW_SEEDS),
    "short-history-compat": Case(compat(2, 2, 7, history_window=2), seeds=FEW_SEEDS),
    "stop-reward-compat": Case(compat(2, 2, 6, stop_reward=3.0), seeds=FEW_SEEDS),
    "levels-run-twice": Case(
        ours(1, "stream", False, beam_size=1, n_actions=1, depth=8), missing_rate=0.35, num_queries=5
    ),
    "levels-run-twice-pool": Case(ours(1, "pool+", True, beam_size=1, n_actions=1, depth=8), missing_rate=0.35),
    "levels-run-twice-stop": Case(
        ours(1, "stream", False, beam_size=1, depth=8, stop_reward=4.0), missing_rate=0.35, seeds=FEW_SEEDS
    ),
    "nothing-is-ever-scored": Case(ours(2, "stream", True), missing_rate=1.0, seeds=range(1)),
}
ALL_RUNS = [
    pytest.param(name, seed, id=f"{name}-seed{seed}", marks=[pytest.mark.slow] if seed >= NUM_QUICK else [])
    for name, case in CASES.items()
    for seed in case.seeds
]


@cache
def reference(name: str, seed: int) -> Found:
    case = CASES[name]
    world = case.world(seed)
    return search(case.settings(seed), world, world.train_queries)


async def run_graph(name: str, seed: int) -> tuple[Archive, RunResult | None, OracleTransport]:
    """Return what the graph left in the archive, its result unless it stalled, and what it asked."""
    case, store = CASES[name], InMemoryStore()
    world = case.world(seed)
    transport = OracleTransport(Oracle(world))
    try:
        run = await run_search(case.settings(seed), world, world.train_queries, store=store, transport=transport)
    except SearchStalledError:
        return Archive(store, "test"), None, transport
    return run.archive, run.result, transport


def tree_of(found: Found) -> list[tuple[object, ...]]:
    return [(one.id, one.parent_id, one.depth, one.origin, one.prompt) for one in found.candidates]


def levels_of(found: Found) -> list[dict[str, object]]:
    return [
        {
            "level": number,
            "query_ids": level.query_ids,
            "children": [
                {"id": one.id, "reward": one.reward, "path_reward": one.path_reward} for one in level.children
            ],
            "beam": [one.id for one in level.beam],
            "is_easy": level.is_easy,
            "max_depth": level.max_depth,
        }
        for number, level in enumerate(found.levels)
    ]


def rewards_of(found: Found) -> dict[str, float | None]:
    return {f"{one.id}/{query_id}": reward for one in found.candidates for query_id, reward in one.rewards.items()}


@pytest.mark.parametrize(("name", "seed"), ALL_RUNS)
async def test_graph_and_reference_find_the_same(name: str, seed: int) -> None:
    expected = reference(name, seed)
    archive, result, _ = await run_graph(name, seed)

    levels = [level for _, level in sorted((await archive.get_all("levels")).items())]
    assert levels == levels_of(expected)
    stored = sorted((await archive.get_all("candidates")).values(), key=lambda one: creation_order(str(one["id"])))
    assert [(one["id"], one["parent_id"], one["depth"], one["origin"], one["prompt"]) for one in stored] == tree_of(
        expected
    )
    rollouts = await archive.get_all("rollouts")
    assert {key: rollout["reward"] for key, rollout in rollouts.items()} == rewards_of(expected)

    assert (result is None) == expected.has_stalled
    if result is not None:
        best, root = expected.best, expected.candidates[0]
        assert (result.candidate_id, result.system_prompt) == (best.id, best.prompt)
        assert (result.reward, result.path_reward) == (best.reward, best.path_reward)
        assert (result.initial_prompt, result.initial_reward) == (root.prompt, root.reward)
        assert result.depth == len(expected.levels) - 1
        assert expected.levels[-1].beam[0].depth == result.depth - expected.keeps_former_beam
        assert list(result.trace) == expected.trace
        assert list(result.beam) == [one.id for one in expected.levels[-1].beam]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("compat", "ours"))])
def test_the_worlds_have_missing_critiques_and_easy_levels(name: str) -> None:
    found = [reference(name, seed) for seed in CASES[name].seeds]
    assert any(candidate.has_failed for one in found for candidate in one.candidates)
    assert any(level.is_easy for one in found for level in one.levels)
    assert any(child.origin == "rewrite" for one in found for child in one.candidates)


def test_the_worlds_reach_every_way_to_end() -> None:
    found = {name: [reference(name, seed) for seed in case.seeds] for name, case in CASES.items()}
    assert all(one.has_run_out for one in found["compat-2x3-queries-run-out"])
    assert any(one.has_run_out for one in found["few-queries-left-over"])
    assert any(one.has_settled for one in found["ours-5-pool"])
    assert any(one.has_settled for one in found["stop-reward"])
    assert any(one.has_settled for one in found["stop-reward-compat"])
    # An unscored root on a fixed pool is rewritten blind, and its children come out.
    assert any(one.levels[0].children[0].reward is None and not one.has_stalled for one in found["ours-1-pool"])
    for name in ("levels-run-twice", "levels-run-twice-pool", "levels-run-twice-stop"):
        assert any(one.num_repeats > 0 and not one.has_stalled for one in found[name])
    assert any(one.has_stalled for one in found["levels-run-twice"])
    assert any(one.keeps_former_beam and not one.has_stalled for one in found["levels-run-twice"])
    assert any(len(one.levels) > 6 for one in found["compat-2x3"])
    assert any(len(one.levels) > 3 for one in found["ours-5-stream-keep"])


async def test_the_same_search_twice_finds_the_same() -> None:
    first, second = [(await run_graph("ours-5-pool+-keep", 3))[1] for _ in range(2)]
    assert first is not None
    assert first == second
