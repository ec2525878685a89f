"""A few labelled trials correct what is expected of a prompt that was never tried."""

import numpy as np
import pytest

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.anchors import fit_shift, measure_spread, offer_prompts
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.training import TrainingSettings, train_router
from tests.support.prompt_worlds import PROMPTS, WorldEmbeddings, make_world

NEW = ("Say it twice.", "Count again.")


@pytest.fixture
async def router() -> PromptRouter:
    settings = TrainingSettings(reward_model="neighbours")
    return await train_router(make_world(200), settings=settings, embeddings=WorldEmbeddings())


def label(prompt: str, outcome: float, num: int = 40) -> list[Demonstration]:
    return [Demonstration(f"Sum {900 + number} with 1 steps.", prompt, outcome, tokens=30.0) for number in range(num)]


def test_a_shift_follows_the_outcomes_and_is_shrunk_where_they_are_few() -> None:
    expected = np.zeros(400, dtype=np.float32)
    outcomes = (np.arange(400) % 10 < 8).astype(np.float32)
    many, few = fit_shift(expected, outcomes, spread=1.0), fit_shift(expected[:10], outcomes[:10], spread=1.0)
    assert many == pytest.approx(np.log(0.8 / 0.2), abs=0.1)
    assert 0 < few < many
    assert fit_shift(expected, np.full(400, 0.5, dtype=np.float32), spread=1.0) == pytest.approx(0.0, abs=1e-6)


def test_a_shift_is_finite_where_all_outcomes_are_alike() -> None:
    assert 0 < fit_shift(np.zeros(30, dtype=np.float32), np.ones(30, dtype=np.float32), spread=1.0) < 6


def test_the_spread_is_that_of_tried_prompts_within_bounds() -> None:
    assert measure_spread([0.5]) == 1.0
    assert measure_spread([0.5, 0.5]) == pytest.approx(0.3)
    assert measure_spread([0.0, 1.0]) == 2.0


async def test_among_unseen_prompts_the_best_is_found_by_anchors(router: PromptRouter) -> None:
    anchors = Demonstrations.from_rows([*label(NEW[0], 1.0), *label(NEW[1], 0.0)])
    blind = await offer_prompts(router, NEW)
    corrected = await offer_prompts(router, NEW, anchors=anchors)
    assert blind.best_prompt == NEW[1]
    assert corrected.best_prompt == NEW[0]
    assert [one.has_anchors for one in corrected.prompts] == [True, True]
    assert corrected.prompts[0].tokens == 30.0


async def test_unseen_prompts_without_anchors_are_never_chosen_over_tried_ones(router: PromptRouter) -> None:
    offered = await offer_prompts(router, [*PROMPTS, *NEW])
    queries = [f"{kind} {number}." for kind in ("Sum", "Journey") for number in range(20)]
    assert {one.prompt for one in offered.batch([*queries])} <= set(PROMPTS)
    assert [one.is_tried for one in offered.prompts] == [True] * 3 + [False] * 2


async def test_a_router_with_anchors_is_saved_whole(
    router: PromptRouter, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("router") / "router.npz"
    anchored = await offer_prompts(router, NEW, anchors=Demonstrations.from_rows(label(NEW[0], 1.0)))
    anchored.save(path)
    again = PromptRouter.load(path, embeddings=WorldEmbeddings())
    assert again.prompts == anchored.prompts
    assert again.invoke("Sum 3.") == anchored.invoke("Sum 3.")


async def test_trials_of_other_prompts_correct_nothing(router: PromptRouter) -> None:
    anchored = await offer_prompts(router, NEW, anchors=Demonstrations.from_rows(label("Another.", 1.0)))
    assert [one.shift for one in anchored.prompts] == [0.0, 0.0]


@pytest.mark.parametrize("prompts", [(), ("A.", "A.")])
async def test_prompts_to_offer_are_there_and_differ(router: PromptRouter, prompts: tuple[str, ...]) -> None:
    with pytest.raises(DemonstrationsError, match="at least one prompt"):
        await offer_prompts(router, prompts)
