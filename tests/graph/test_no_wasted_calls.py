"""Every model call serves the search: what the transport saw is what the restated search needs, and nothing twice."""

import json
import re
from collections import Counter

import pytest

from tests.graph.test_equivalence import CASES, reference, run_graph
from tests.reference_search import Found, SemanticRequest
from tests.support.searches import SearchRun, fake_settings, run_search
from tests.support.world import World

_FENCE = re.compile(r"<((?P<label>[a-z]+)-[0-9a-f]{12})>\n(?P<text>.*?)\n</\1>", re.DOTALL)
_REMARK = re.compile(r"^- (?P<metric>.+?): (?P<score>\d) of 5\.", re.MULTILINE)
_LISTED = re.compile(r"^- (?P<metric>.+?): ", re.MULTILINE)

RUNS = [pytest.param(name, seed, id=f"{name}-seed{seed}") for name, case in CASES.items() for seed in case.seeds[-2:]]


def read_request(role: str, canonical: str) -> SemanticRequest:
    """Return what a rendered request asks, in the reference's terms."""
    body = json.loads(canonical)
    messages = body["messages"]
    if role == "base":
        assert [one["role"] for one in messages] == ["system", "user"]
        return "base", messages[0]["content"], messages[1]["content"]
    fenced = [(found["label"], found["text"]) for found in _FENCE.finditer(messages[0]["content"])]

    def texts(label: str) -> list[str]:
        return [text for found, text in fenced if found == label]

    if role == "metrics":
        return "metrics", texts("query")[0]
    if role == "critic":
        metrics = tuple(_LISTED.findall(texts("metrics")[0]))
        name = "critic" if len(messages) == 1 else "repair"
        return name, texts("query")[0], texts("answer")[0], metrics
    remarks = [tuple((metric, int(score)) for metric, score in _REMARK.findall(text)) for text in texts("remarks")]
    feedback = tuple(zip(texts("query"), remarks, strict=True))
    *history, current = texts("prompt")
    return "optimizer", current, feedback, tuple(history), body["seed"], body["n"]


def asked_by(requests: list[tuple[str, str]]) -> Counter[SemanticRequest]:
    return Counter(read_request(role, canonical) for role, canonical in requests)


@pytest.mark.parametrize(("name", "seed"), RUNS)
async def test_exactly_the_requests_that_the_search_needs_are_made(name: str, seed: int) -> None:
    expected = reference(name, seed)
    _, _, transport = await run_graph(name, seed)
    asked = asked_by(transport.requests)
    assert asked == expected.requests
    assert_nothing_is_wasted(asked, expected)
    # An unusable critique is asked for again, in the same words; nothing else is.
    repeated = {json_text for json_text, times in Counter(transport.requests).items() if times > 1}
    assert {role for role, _ in repeated} <= {"critic"}
    if CASES[name].missing_rate == 0 or "compat" in name:
        assert not repeated


def assert_nothing_is_wasted(asked: Counter[SemanticRequest], found: Found) -> None:
    if not found.has_stalled:
        assert {one[1] for one in asked if one[0] == "metrics"} == {one[2] for one in asked if one[0] == "base"}
    run_prompts = {one[1] for one in asked if one[0] == "base"}
    assert run_prompts == {one.prompt for one in found.candidates}
    num_rewritten = len({one.parent_id for one in found.candidates if one.origin == "rewrite"})
    # Equal requests of equal parents are paid for once.
    assert sum(one[0] == "optimizer" for one in asked) <= num_rewritten


@pytest.mark.parametrize("stop_reward", [None, 1.0, 3.3, 5.0])
@pytest.mark.parametrize("compat", ["none", "drpo"])
async def test_nothing_is_generated_after_the_last_level(compat: str, stop_reward: float | None) -> None:
    world = World(5, num_queries=41, num_heldout=1)
    policy = {} if compat == "drpo" else {"queries_per_level": 2, "query_policy": "stream"}
    run = await run_search(
        fake_settings(compat=compat, depth=4, n_actions=2, stop_reward=stop_reward, **policy),
        world,
        world.train_queries,
    )
    if stop_reward == 1.0:
        assert run.result.depth == 0
        assert {role for role, _ in run.transport.requests} == {"base", "metrics", "critic"}
    await assert_all_calls_were_used(run)


@pytest.mark.parametrize("depth", [2, 3, 4])
async def test_every_level_costs_what_it_says(depth: int) -> None:
    world = World(2, num_queries=41, num_heldout=1)
    settings = fake_settings(
        compat="drpo", depth=depth, beam_size=2, n_actions=3, max_depth_increase=0, skip_threshold=5.0
    )
    run = await run_search(settings, world, world.train_queries)
    levels = list((await run.archive.get_all("levels")).values())
    assert len(levels) == depth
    num_by_role = Counter(role for role, _ in run.transport.requests)
    num_candidates = 1 + 3 + 6 * (depth - 2)
    assert num_by_role["metrics"] == depth
    assert num_by_role["optimizer"] == 1 + 2 * (depth - 2)
    # Two siblings with the same prompt share their calls.
    assert num_candidates - 3 <= num_by_role["base"] <= num_candidates
    assert num_by_role["critic"] == num_by_role["base"]


async def test_selection_on_held_out_queries_runs_only_the_contenders() -> None:
    world = World(4, num_queries=41, num_heldout=5)
    settings = fake_settings(queries_per_level=2, depth=3, n_actions=2)
    validation = world.heldout_queries
    run = await run_search(settings, world, world.train_queries, validation=validation)
    asked = asked_by(run.transport.requests)
    assert set(asked.values()) == {1}
    tried: dict[str, set[object]] = {}
    for one in asked:
        if one[0] == "base" and one[2] in validation:
            tried.setdefault(str(one[1]), set()).add(one[2])
    assert run.result.initial_prompt in tried
    assert run.result.system_prompt in tried
    assert all(queries == set(validation) for queries in tried.values())
    assert run.result.validation is not None
    assert len(tried) == 1 + len(run.result.validation.comparisons)
    await assert_all_calls_were_used(run)


async def assert_all_calls_were_used(run: SearchRun) -> None:
    """Metrics only for queries that a rollout used, rewrites only for parents whose children were run."""
    asked = asked_by(run.transport.requests)
    assert set(asked.values()) == {1}
    rollouts = (await run.archive.get_all("rollouts")).values()
    queries = {query_id: query["text"] for query_id, query in (await run.archive.get_all("queries")).items()}
    assert {one[1] for one in asked if one[0] == "metrics"} == {queries[str(one["query_id"])] for one in rollouts}
    candidates = await run.archive.get_all("candidates")
    assert set(candidates) == {one["candidate_id"] for one in rollouts}
    parents = {one["parent_id"] for one in candidates.values() if one["origin"] == "rewrite"}
    parent_prompts = {candidates[str(parent)]["prompt"] for parent in parents}
    assert {one[1] for one in asked if one[0] == "optimizer"} == parent_prompts
