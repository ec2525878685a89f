"""The router: choices, Runnable, policies."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from drpo_graph.errors import DemonstrationsError, RewardModelError
from drpo_graph.oirl.demonstrations import Demonstration
from drpo_graph.oirl.features import PROBE, embed_texts
from drpo_graph.oirl.gate import Gate
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.router_parts import Policy
from drpo_graph.parts.choosers import PromptChooser
from tests.oirl.routers import DRAW, PROMPTS, SHAPE, STEPS, SUM, KindEmbeddings, ask, learn, make_rows
from tests.support.embeddings import SIZE, CountingEmbeddings

FRESH = [ask((SUM, SHAPE)[number % 2], 5_000 + number) for number in range(40)]


class Runs(BaseTracer):
    """Keeps the runs that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.seen.append(run)


def with_parts(router: PromptRouter, **changes: Any) -> PromptRouter:
    return PromptRouter(replace(router.parts, **changes), KindEmbeddings())


def embeddings_of(router: PromptRouter) -> KindEmbeddings:
    found = router._embeddings
    assert isinstance(found, KindEmbeddings)
    return found


async def test_where_the_evidence_supports_it_each_query_gets_its_prompt() -> None:
    router = await learn()
    choices = await router.abatch(list(FRESH))
    assert router.parts.gate.is_open
    assert not router.has_abstained
    right = [
        choice.prompt == (STEPS if query.startswith(SUM) else DRAW)
        for choice, query in zip(choices, FRESH, strict=True)
    ]
    assert sum(right) > 0.9 * len(FRESH)
    for choice in choices:
        is_best = choice.prompt == router.best_prompt
        assert choice.gain is not None
        assert (choice.gain == 0) == is_best
        assert (choice.confidence == 1.0) or not is_best
        assert choice.reason == (
            "The best single prompt: no other is expected to do better on this query."
            if is_best
            else "Expected to do better on this query than the best single prompt."
        )


async def test_every_way_of_asking_gives_the_same() -> None:
    router = await learn()
    expected = [router.invoke(query) for query in FRESH[:6]]
    assert [await router.ainvoke(query) for query in FRESH[:6]] == expected
    assert [await router.achoose(query) for query in FRESH[:6]] == expected
    assert router.batch(list(FRESH[:6])) == expected
    assert await router.abatch(list(FRESH[:6])) == expected
    assert [router.invoke({"query": query, "more": 1}) for query in FRESH[:6]] == expected
    assert [one async for one in router.astream(FRESH[0])] == expected[:1]
    assert (router | RunnableLambda(lambda choice: choice.prompt)).invoke(FRESH[0]) == expected[0].prompt
    assert isinstance(router, PromptChooser)


async def test_no_query_gives_no_choice() -> None:
    router = await learn()
    assert router.batch([]) == []
    assert await router.abatch([]) == []


@pytest.mark.parametrize("given", ["", " \n", {}, {"query": " "}, {"query": None}, {"query": ["a"]}, None, 3])
async def test_an_input_without_a_query_is_told_in_one_line(given: Any) -> None:
    router = await learn()
    for ask_it in (router.ainvoke(given), router.abatch([given])):
        with pytest.raises(
            RewardModelError, match="A router is asked with a text, or a mapping with 'query': got"
        ) as raised:
            await ask_it
        assert "\n" not in str(raised.value)
    with pytest.raises(RewardModelError, match="A router is asked with a text"):
        router.invoke(given)


async def test_an_input_without_a_query_stops_no_other_where_exceptions_are_returned() -> None:
    router = await learn()
    inputs: list[Any] = [FRESH[0], " ", FRESH[1], {}]
    for found in (router.batch(inputs, return_exceptions=True), await router.abatch(inputs, return_exceptions=True)):
        assert [type(one).__name__ for one in found] == ["PromptChoice", "RewardModelError"] * 2
        assert [found[0], found[2]] == router.batch(FRESH[:2])
    with pytest.raises(RewardModelError):
        router.batch(inputs)
    assert [type(one).__name__ for one in router.batch([" "], return_exceptions=True)] == ["RewardModelError"]


async def test_half_a_surrogate_pair_in_a_query_is_no_matter() -> None:
    router = await learn()
    assert router.invoke(f"{FRESH[0]}\ud800") == router.invoke(f"{FRESH[0]}\ufffd")


async def test_tracers_see_each_run_with_its_tags_and_its_error() -> None:
    router = await learn()
    tracer = Runs()
    config: Any = {"callbacks": [tracer], "tags": ["here"], "run_name": "choose", "metadata": {"of": "test"}}
    choice = await router.ainvoke(FRESH[0], config)
    router.invoke(FRESH[0], config)
    router.batch(FRESH[:2], config)
    with pytest.raises(RewardModelError):
        await router.ainvoke(" ", config)
    assert [run.name for run in tracer.seen] == ["choose"] * 5
    assert all(run.tags == ["here"] and (run.extra or {})["metadata"]["of"] == "test" for run in tracer.seen)
    assert tracer.seen[0].inputs == {"input": FRESH[0]}
    assert tracer.seen[0].outputs == {"output": choice}
    assert "A router is asked" in (tracer.seen[-1].error or "")


async def test_ten_thousand_queries_and_a_hundred_prompts_are_one_batch() -> None:
    prompts = [f"Prompt {number}." for number in range(100)]
    rows = [
        Demonstration(ask(SUM, number), prompt, float((number + place) % 3 == 0))
        for number in range(6)
        for place, prompt in enumerate(prompts)
    ]
    router = await learn(rows, reward_model="additive")
    embeddings = embeddings_of(router)
    embeddings.documents.clear()
    queries = [f"{SUM} {number}" for number in range(10_000)]
    calls: list[int] = []
    whole = embeddings.embed_documents
    embeddings.embed_documents = lambda texts: (calls.append(len(texts)), whole(texts))[1]  # type: ignore[method-assign]
    assert len(router.batch(list(queries))) == 10_000
    assert calls == [1, 10_000]
    assert embeddings.documents == [PROBE, *queries]
    assert len(await router.abatch(list(queries[:3]))) == 3
    # The probe is not embedded again.
    assert calls == [1, 10_000, 3]


async def test_choices_as_arrays_are_those_of_the_runnable() -> None:
    router = await learn()
    routed = router.route(await embed_texts(FRESH, KindEmbeddings()))
    choices = router.batch(list(FRESH))
    assert [PROMPTS[number] for number in routed.chosen] == [choice.prompt for choice in choices]
    assert routed.rewards.shape == (len(FRESH), 3)
    np.testing.assert_allclose(
        routed.rewards[np.arange(len(FRESH)), routed.chosen], [choice.reward for choice in choices], atol=1e-6
    )
    assert ((routed.rewards >= 0) & (routed.rewards <= 1)).all()
    assert ((routed.confidences >= 0) & (routed.confidences <= 1)).all()


@pytest.mark.parametrize("vector", [[1.0] * SIZE, [1.0] * 3, [0.0] * SIZE])
async def test_other_embeddings_are_refused_before_any_choice(vector: list[float]) -> None:
    class Others(CountingEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector for _ in texts]

    router = PromptRouter((await learn()).parts, Others())
    for _ in range(2):
        with pytest.raises(RewardModelError) as raised:
            router.invoke(FRESH[0])
        assert "\n" not in str(raised.value)
    with pytest.raises(RewardModelError):
        await router.ainvoke(FRESH[0])


async def test_embeddings_that_are_missing_later_are_told() -> None:
    router = await learn()
    router.invoke(FRESH[0])
    embeddings = embeddings_of(router)
    embeddings.embed_documents = lambda texts: []  # type: ignore[method-assign]
    with pytest.raises(RewardModelError, match="0 embeddings for 1 texts"):
        router.invoke(FRESH[0])


async def test_a_router_that_abstains_gives_the_best_single_prompt_and_says_why() -> None:
    router = await learn(make_rows(gap=0.0))
    assert router.has_abstained
    choices = router.batch(list(FRESH))
    assert {choice.prompt for choice in choices} == {router.best_prompt}
    assert all(choice.has_abstained and choice.gain == 0 and choice.confidence == 1 for choice in choices)
    assert choices[0].reason == f"The best single prompt: {router.parts.gate.reason}."
    assert "no gain is certain" in choices[0].reason or "no query is expected" in choices[0].reason


async def test_the_best_prompt_of_a_router_is_that_of_its_gate() -> None:
    for seed in range(5):
        rows = make_rows(40 + seed, gap=0.1, tokens=[30.0, 10.0, None])
        router = await learn(rows, price_per_1k=1.0 + seed, seed=seed)
        assert router.best_prompt == router.prompts[router.parts.gate.best].text


@pytest.mark.parametrize("policy", ["best", "fallback"])
async def test_policies_that_follow_expectation_choose_the_highest_whatever_the_gate_says(policy: Policy) -> None:
    closed = (await learn()).parts.gate.model_copy(update={"threshold": None})
    router = with_parts(await learn(), gate=closed, policy=policy)
    routed = router.route(await embed_texts(FRESH, KindEmbeddings()))
    assert not router.has_abstained
    assert routed.chosen.tolist() == routed.rewards.argmax(axis=1).tolist()
    assert not any(choice.has_abstained for choice in router.batch(list(FRESH)))


async def test_the_safe_policy_chooses_another_prompt_only_beyond_the_gates_threshold() -> None:
    router = await learn()
    gate: Gate = router.parts.gate.model_copy(update={"threshold": 0.999})
    assert {choice.prompt for choice in with_parts(router, gate=gate).batch(list(FRESH))} == {router.best_prompt}


async def test_the_safe_policy_leaves_out_what_was_never_tried_until_it_has_anchors() -> None:
    router = await learn()
    other = router.parts.gate.best == 0
    prompts = [*router.prompts]
    prompts[int(other)] = prompts[int(other)].model_copy(update={"is_tried": False})
    texts = {choice.prompt for choice in with_parts(router, prompts=tuple(prompts)).batch(list(FRESH))}
    assert PROMPTS[int(other)] not in texts
    prompts[int(other)] = prompts[int(other)].model_copy(update={"has_anchors": True})
    texts = {choice.prompt for choice in with_parts(router, prompts=tuple(prompts)).batch(list(FRESH))}
    assert PROMPTS[int(other)] in texts


async def test_the_papers_rule_takes_an_untried_prompt_where_the_best_tried_one_is_unlikely_to_be_right() -> None:
    router = await learn()
    # Nothing but the first prompt was tried, which is right on sums.
    prompts = tuple(one.model_copy(update={"is_tried": one.text == STEPS}) for one in router.prompts)
    fallback = with_parts(router, prompts=prompts, policy="fallback")
    for query, choice in zip(FRESH, fallback.batch(list(FRESH)), strict=True):
        assert (choice.prompt == STEPS) == query.startswith(SUM)
    dear = with_parts(router, prompts=prompts, policy="fallback", price_per_1k=0.6)
    costly = tuple(one.model_copy(update={"tokens": 1_000.0}) for one in prompts)
    # A price makes no answer less likely to be right.
    for one in (dear, with_parts(dear, prompts=costly)):
        assert [choice.prompt for choice in one.batch(FRESH[:1])] == [STEPS]


async def test_a_prompt_twice_as_long_loses_where_rewards_are_equal() -> None:
    rows = [
        Demonstration(ask(SUM, number), prompt, float(number % 2), tokens=tokens)
        for number in range(60)
        for prompt, tokens in ((STEPS, 200.0), (DRAW, 100.0))
    ]
    for policy in ("safe", "best"):
        assert {one.prompt for one in (await learn(rows, price_per_1k=0.5, policy=policy)).batch(list(FRESH))} == {DRAW}
    assert (await learn(rows)).best_prompt == STEPS


async def test_a_prompt_of_unknown_cost_is_priced_as_is_usual() -> None:
    router = await learn(make_rows(tokens=[100.0, 300.0, None]), price_per_1k=1.0)
    np.testing.assert_allclose(router._prices(), [0.1, 0.3, 0.2], rtol=1e-6)
    with pytest.raises(DemonstrationsError, match="No demonstration tells its tokens"):
        await learn(price_per_1k=1.0)


async def test_a_choice_that_is_expected_to_do_worse_is_not_called_sure() -> None:
    rows = make_rows(tokens=[1_000.0, 1.0, 1.0])
    router = await learn(rows, policy="best")
    dear = with_parts(router, price_per_1k=2.0)
    for choice in dear.batch(list(FRESH)):
        assert choice.prompt != STEPS
        assert choice.gain is not None
        assert choice.confidence is not None
        assert (choice.confidence >= 0.5) == (choice.gain >= 0) or abs(choice.gain) < 0.02
