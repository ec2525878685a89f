"""A few labelled trials correct what is expected of a prompt that was never tried."""

import numpy as np
import pytest

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.anchors import Anchored, fit_shifts, offer_prompts
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


def half_expected(share: float, num: int) -> Anchored:
    """A prompt that is expected to be right in half of all cases, and is in this share of them."""
    return Anchored(np.zeros(num, dtype=np.float32), (np.arange(num) < share * num).astype(np.float32))


def test_a_shift_follows_the_outcomes_and_is_shrunk_where_they_are_few() -> None:
    [many, other], [few, _] = (fit_shifts([half_expected(0.8, num), half_expected(0.2, num)]) for num in (400, 10))
    assert many == pytest.approx(np.log(0.8 / 0.2), abs=0.1)
    assert other == pytest.approx(-many, abs=0.01)
    assert 0 < few < many
    assert fit_shifts([half_expected(0.5, 400)]) == pytest.approx([0.0], abs=1e-3)
    assert fit_shifts([]) == []


def test_a_shift_is_finite_where_all_outcomes_are_alike() -> None:
    assert 0 < fit_shifts([half_expected(1.0, 30)])[0] < 6


def test_prompts_that_do_as_their_texts_promise_are_hardly_shifted_by_chance() -> None:
    draw = np.random.default_rng(5)
    logits = draw.normal(size=(10, 32)).astype(np.float32)
    outcomes = (draw.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    by_chance = np.std(outcomes.mean(axis=1)) * 4  # On the logit scale, about.
    assert np.std(fit_shifts([Anchored(*one) for one in zip(logits, outcomes, strict=True)])) < by_chance / 3


def test_prompts_of_which_the_texts_tell_nothing_are_ranked_by_their_anchors() -> None:
    levels = np.linspace(0.1, 0.9, 9)
    shifts = fit_shifts([half_expected(level, 40) for level in levels])
    assert shifts == sorted(shifts)
    assert shifts[-1] - shifts[0] > 3


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


async def test_trials_of_other_prompts_alone_are_refused(router: PromptRouter) -> None:
    for other in ("Another.", f"{NEW[0]} ", PROMPTS[0]):
        with pytest.raises(DemonstrationsError, match="None of the 40 anchors is a trial of a prompt that is offered"):
            await offer_prompts(router, [*PROMPTS, *NEW], anchors=Demonstrations.from_rows(label(other, 1.0)))


@pytest.mark.parametrize("prompts", [(), ("A.", "A.")])
async def test_prompts_to_offer_are_there_and_differ(router: PromptRouter, prompts: tuple[str, ...]) -> None:
    with pytest.raises(DemonstrationsError, match="at least one prompt"):
        await offer_prompts(router, prompts)
