"""The synthetic world: pure, of known quality, and noisy enough to be a problem."""

import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.world import INITIAL_PROMPT, METRICS, Feedback, World, levels_of, prompt_with_levels

ROOT = Path(__file__).resolve().parents[2]
WORLD = World(3)
FLAT_PROMPTS = {level: prompt_with_levels(dict.fromkeys(METRICS, level)) for level in range(11)}

TRANSCRIPT = """
from tests.support.world import INITIAL_PROMPT, World
world = World(11, missing_rate=0.1, easy_rate=0.1)
for query in world.queries[:5]:
    metrics = world.select_metrics(query)
    response = world.respond(INITIAL_PROMPT, query)
    critique = world.critique(query, response, metrics=metrics)
    feedback = [(query, critique or {})]
    print(query, metrics, response, critique)
    print(world.rewrite(INITIAL_PROMPT, feedback, history=["a", "b"], n=4, seed=2))
print(world.quality(INITIAL_PROMPT))
"""


def judge(world: World, prompt: str, query: str) -> dict[str, int]:
    scores = world.critique(query, world.respond(prompt, query), metrics=world.select_metrics(query))
    assert scores is not None
    return scores


def feedback_on(prompt: str, queries: list[str]) -> list[Feedback]:
    return [(query, judge(WORLD, prompt, query)) for query in queries]


def mean_scores(world: World, prompt: str) -> list[float]:
    return [statistics.mean(judge(world, prompt, query).values()) for query in world.heldout_queries]


def test_everything_is_equal_across_processes_with_different_hash_seeds() -> None:
    outputs = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", TRANSCRIPT], env=env, capture_output=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0]
    assert outputs[0] == outputs[1]


def test_another_seed_is_another_world() -> None:
    assert World(1).queries != World(2).queries
    query = WORLD.queries[0]
    assert len({tuple(World(seed).select_metrics(query)) for seed in range(20)}) > 10


def test_queries_are_distinct_and_split_without_overlap() -> None:
    assert len(set(WORLD.queries)) == WORLD.num_queries == 600
    assert len(WORLD.heldout_queries) == 200
    assert WORLD.train_queries + WORLD.heldout_queries == WORLD.queries


@pytest.mark.parametrize("num_heldout", [0, 10, 11])
def test_world_without_both_parts_is_refused(num_heldout: int) -> None:
    with pytest.raises(ValueError, match="num_heldout"):
        World(1, num_queries=10, num_heldout=num_heldout)


def test_each_query_has_two_to_five_distinct_metrics_and_every_metric_occurs() -> None:
    selections = [WORLD.select_metrics(query) for query in WORLD.queries]
    assert {len(selection) for selection in selections} == {2, 3, 4, 5}
    assert all(len(set(selection)) == len(selection) for selection in selections)
    counts = Counter(metric for selection in selections for metric in selection)
    assert set(counts) == set(METRICS)
    assert counts["Helpfulness"] > 2 * counts["Interactivity"]


def test_levels_are_read_back_from_the_prompt_text() -> None:
    levels = {metric: index % 11 for index, metric in enumerate(METRICS)}
    assert levels_of(prompt_with_levels(levels)) == levels
    assert levels_of(f"Be kind.\n\n{prompt_with_levels(levels)}\n- Charm: level 9\n") == levels


def test_text_without_levels_has_low_ones() -> None:
    for text in (INITIAL_PROMPT, "Be brief.", ""):
        assert set(levels_of(text).values()) <= {2, 3, 4}


def test_partly_stated_levels_leave_the_others_low() -> None:
    levels = levels_of("Be good.\n- Clarity: level 9")
    assert levels.pop("Clarity") == 9
    assert set(levels.values()) <= {2, 3, 4}


def test_surrounding_white_space_changes_nothing() -> None:
    query = WORLD.queries[5]
    assert WORLD.respond(f" {INITIAL_PROMPT}\n", f"{query} ") == WORLD.respond(INITIAL_PROMPT, query)


@pytest.mark.parametrize("seed", range(8))
def test_initial_prompt_is_poor_and_a_perfect_one_is_not(seed: int) -> None:
    world = World(seed)
    assert 2.3 < world.quality(INITIAL_PROMPT) < 2.8
    assert world.quality(FLAT_PROMPTS[10]) > 4.5


def test_quality_rises_with_levels() -> None:
    qualities = [WORLD.quality(FLAT_PROMPTS[level]) for level in range(11)]
    assert qualities == sorted(qualities)


def test_raising_one_metric_raises_quality_without_noise() -> None:
    world = World(3, noise=0)
    base = world.quality(FLAT_PROMPTS[4])
    for metric in METRICS:
        assert world.quality(prompt_with_levels({**dict.fromkeys(METRICS, 4), metric: 5})) > base


def test_quality_agrees_with_the_judge_on_average() -> None:
    for prompt in (INITIAL_PROMPT, FLAT_PROMPTS[6]):
        assert statistics.mean(mean_scores(WORLD, prompt)) == pytest.approx(WORLD.quality(prompt), abs=0.1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompt", [INITIAL_PROMPT, FLAT_PROMPTS[5]])
def test_single_query_is_a_poor_estimate(seed: int, prompt: str) -> None:
    assert 0.6 < statistics.stdev(mean_scores(World(seed), prompt)) < 0.9


def test_same_query_only_partly_cancels_noise_between_siblings() -> None:
    sibling = prompt_with_levels({**dict.fromkeys(METRICS, 5), "Clarity": 6})
    pairs = zip(mean_scores(WORLD, sibling), mean_scores(WORLD, FLAT_PROMPTS[5]), strict=True)
    assert 0.5 < statistics.stdev(one - other for one, other in pairs) < 1.0


def test_response_tells_the_realised_scores() -> None:
    query = WORLD.queries[0]
    response = WORLD.respond(INITIAL_PROMPT, query)
    for metric, score in WORLD.realised_scores(INITIAL_PROMPT, query).items():
        assert f"{metric} came out at {score:.2f} of 5." in response


def test_judge_without_noise_rounds_the_realised_score() -> None:
    world = World(3, noise=0)
    for query in world.queries[:50]:
        realised = world.realised_scores(INITIAL_PROMPT, query)
        scores = judge(world, INITIAL_PROMPT, query)
        assert all(abs(scores[metric] - realised[metric]) < 0.51 for metric in realised)


def test_judge_scores_each_metric_alike_in_any_company() -> None:
    query = WORLD.queries[2]
    response = WORLD.respond(INITIAL_PROMPT, query)
    together = WORLD.critique(query, response, metrics=METRICS)
    assert together is not None
    assert set(together.values()) <= {1, 2, 3, 4, 5}
    for metric in METRICS:
        assert WORLD.critique(query, response, metrics=[metric]) == {metric: together[metric]}


def test_metric_that_the_response_says_nothing_about_scores_low() -> None:
    scores = [WORLD.critique(query, "", metrics=["Clarity"]) for query in WORLD.queries]
    assert statistics.mean(score["Clarity"] for score in scores if score) < 2


def test_missing_and_easy_critiques_come_at_their_rates() -> None:
    world = World(5, missing_rate=0.2, easy_rate=0.3)
    critiques = [
        world.critique(query, world.respond(INITIAL_PROMPT, query), metrics=["Safety", "Depth"])
        for query in world.queries
    ]
    assert 0.15 < sum(critique is None for critique in critiques) / 600 < 0.25
    # The easy draw is made among readable critiques too.
    assert 0.25 < sum(critique == {"Safety": 5, "Depth": 5} for critique in critiques) / 600 < 0.36


def rewrites_of(prompt: str, feedback: list[Feedback], *, n: int = 400) -> list[dict[str, int]]:
    return [levels_of(text) for text in WORLD.rewrite(prompt, feedback, history=[], n=n, seed=0)]


def share_changed(metric: str, rewrites: list[dict[str, int]], *, by_sign: int) -> float:
    before = levels_of(FLAT_PROMPTS[5])[metric]
    return sum((levels[metric] - before) * by_sign > 0 for levels in rewrites) / len(rewrites)


def test_rewrite_depends_on_every_argument() -> None:
    feedback = feedback_on(INITIAL_PROMPT, WORLD.train_queries[:2])
    base = WORLD.rewrite(INITIAL_PROMPT, feedback, history=[], n=4, seed=0)
    assert WORLD.rewrite(INITIAL_PROMPT, feedback, history=[], n=4, seed=0) == base
    assert WORLD.rewrite(INITIAL_PROMPT, feedback, history=[], n=2, seed=0) == base[:2]
    assert WORLD.rewrite(INITIAL_PROMPT, feedback, history=[], n=4, seed=1) != base
    assert WORLD.rewrite(INITIAL_PROMPT, feedback, history=["x"], n=4, seed=0) != base
    assert WORLD.rewrite(INITIAL_PROMPT, feedback[:1], history=[], n=4, seed=0) != base
    assert WORLD.rewrite("Be brief.", feedback, history=[], n=4, seed=0) != base


def test_rewrites_of_one_request_differ_with_few_repeats() -> None:
    repeats_of_sibling = repeats_of_parent = 0
    for seed in range(300):
        feedback = feedback_on(INITIAL_PROMPT, [WORLD.train_queries[seed]])
        samples = WORLD.rewrite(INITIAL_PROMPT, feedback, history=[], n=3, seed=seed)
        repeats_of_sibling += len(set(samples)) < 3
        repeats_of_parent += INITIAL_PROMPT in samples
    assert 0.01 < repeats_of_sibling / 300 < 0.2
    assert 0.01 < repeats_of_parent / 300 < 0.15


def test_the_lower_the_score_the_likelier_the_metric_rises() -> None:
    rewrites = rewrites_of(FLAT_PROMPTS[5], [("q", {"Clarity": 1, "Depth": 3, "Safety": 5})])
    shares = [share_changed(metric, rewrites, by_sign=1) for metric in ("Clarity", "Depth", "Safety")]
    assert shares[0] > shares[1] + 0.1
    assert shares[1] > shares[2] + 0.1
    assert shares[2] == 0


def test_metrics_without_feedback_are_forgotten_more_than_those_with() -> None:
    rewrites = rewrites_of(FLAT_PROMPTS[5], [("q", {"Clarity": 4, "Depth": 4})])
    seen = share_changed("Clarity", rewrites, by_sign=-1)
    unseen = statistics.mean(share_changed(metric, rewrites, by_sign=-1) for metric in METRICS[4:])
    assert unseen > seen + 0.03


def test_fuller_prompts_forget_more() -> None:
    feedback: list[Feedback] = [("q", {"Clarity": 3})]
    shares = []
    for level in (3, 9):
        rewrites = rewrites_of(FLAT_PROMPTS[level], feedback)
        shares.append(statistics.mean(levels[metric] < level for levels in rewrites for metric in METRICS[4:]))
    assert shares[1] > shares[0] + 0.02


def test_only_the_content_of_feedback_counts_not_its_number() -> None:
    """The same scores told once or split over queries have the same effect, up to the draw."""
    scores = {"Clarity": 2, "Depth": 2, "Empathy": 4, "Safety": 3}
    whole: list[Feedback] = [("q", scores)]
    split: list[Feedback] = [(f"q{index}", {metric: score}) for index, (metric, score) in enumerate(scores.items())]
    means = []
    for feedback in (whole, split):
        rewrites = rewrites_of(FLAT_PROMPTS[5], feedback, n=3000)
        means.append([statistics.mean(levels[metric] for levels in rewrites) for metric in METRICS])
    assert means[0] == pytest.approx(means[1], abs=0.07)


def test_rewrite_without_feedback_still_gives_prompts() -> None:
    assert len(rewrites_of(INITIAL_PROMPT, [], n=5)) == 5


def test_former_prompts_can_restore_a_lost_level() -> None:
    feedback: list[Feedback] = [("q", {"Clarity": 3})]
    samples = WORLD.rewrite(FLAT_PROMPTS[5], feedback, history=[FLAT_PROMPTS[8]], n=400, seed=0)
    assert sum(levels_of(text)["Empathy"] > 5 for text in samples) > 10
    assert share_changed("Empathy", rewrites_of(FLAT_PROMPTS[5], feedback), by_sign=1) == 0


def test_levels_stay_in_range_along_a_chain() -> None:
    prompt = INITIAL_PROMPT
    for step in range(60):
        feedback = feedback_on(prompt, [WORLD.train_queries[step]])
        (prompt,) = WORLD.rewrite(prompt, feedback, history=[], n=1, seed=step)
        assert all(0 <= level <= 10 for level in levels_of(prompt).values())


def test_rewrites_of_a_poor_prompt_go_both_ways() -> None:
    """Neither is every rewrite a gain, nor is a gain rare: there is something to search."""
    prompt, base = FLAT_PROMPTS[4], World(3, noise=0).quality(FLAT_PROMPTS[4])
    gains = []
    for step in range(100):
        feedback = feedback_on(prompt, [WORLD.train_queries[step]])
        (child,) = WORLD.rewrite(prompt, feedback, history=[], n=1, seed=step)
        gains.append(World(3, noise=0).quality(child) - base)
    assert 0.3 < sum(gain > 0 for gain in gains) / 100 < 0.85
    assert -0.1 < statistics.mean(gains) < 0.1
