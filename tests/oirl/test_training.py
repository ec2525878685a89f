"""Learning a router from demonstrations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drpo_graph.errors import DemonstrationsError, UsageError
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.router import PromptRouter
from drpo_graph.oirl.training import TrainingSettings, describe_prompts, select_training_rows, train_router
from tests.oirl.routers import KindEmbeddings, learn, make_rows

TRAIN = [row._replace(split="train") for row in make_rows(20, tokens=(9, 20, 30))]
TEST = [row._replace(split="test", query=f"{row.query} again") for row in make_rows(10, tokens=(9, 20, 30))]


def content_of(router: PromptRouter, folder: Path) -> bytes:
    path = folder / "router.npz"
    router.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row._replace(outcome=1 - row.outcome),
        lambda row: row._replace(query=f"shape {row.outcome} {row.query}"),
        lambda row: row._replace(prompt="Never seen in training."),
        lambda row: row._replace(tokens=10_000.0, confidence=1.0),
        lambda row: row._replace(query=TRAIN[0].query, outcome=0.5),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_nothing_is_learned_from_the_test_side(
    tmp_path: Path, change: Callable[[Demonstration], Demonstration], is_first: bool
) -> None:
    test = [change(row) for row in TEST]
    rows = [*test, *TRAIN] if is_first else [*TRAIN, *test]
    assert content_of(await learn(rows), tmp_path) == content_of(await learn(TRAIN), tmp_path)


async def test_texts_of_the_test_side_are_not_even_embedded() -> None:
    embeddings = KindEmbeddings()
    table = Demonstrations.from_rows([*TRAIN, *TEST])
    await train_router(table, settings=TrainingSettings(reward_model="neighbours"), embeddings=embeddings)
    assert not set(embeddings.documents) & {row.query for row in TEST}


async def test_equal_trials_and_settings_give_the_same_file(tmp_path: Path) -> None:
    first, second = [content_of(await learn(seed=3), tmp_path) for _ in range(2)]
    assert first == second


async def test_what_a_router_was_learned_from_is_kept() -> None:
    found = (await learn([*TRAIN, *TEST], seed=5)).parts.provenance
    assert (found.reward_model, found.embeddings, found.model, found.seed) == ("neighbours", "kinds", "m", 5)
    assert (found.num_rows, found.num_queries) == (60, 20)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"price_per_1k": 0.1}, {"policy": "best"}, {"reward_model": "additive"}],
)
async def test_the_digest_of_settings_changes_with_each_of_them_and_that_of_the_data_does_not(
    changes: dict[str, Any],
) -> None:
    first, other = (await learn(TRAIN)).parts.provenance, (await learn(TRAIN, **changes)).parts.provenance
    assert first.settings_digest != other.settings_digest
    assert first.data_digest == other.data_digest


@pytest.mark.parametrize(
    "changed",
    [TRAIN[:-1], [TRAIN[0]._replace(outcome=0.5), *TRAIN[1:]], [row._replace(model="n") for row in TRAIN], TRAIN[::-1]],
)
async def test_the_digest_of_the_data_changes_with_it_and_that_of_settings_does_not(
    changed: Sequence[Demonstration],
) -> None:
    first, other = (await learn(TRAIN)).parts.provenance, (await learn(changed)).parts.provenance
    assert first.data_digest != other.data_digest
    assert first.settings_digest == other.settings_digest


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
async def test_outcomes_that_are_all_alike_are_told(outcome: float) -> None:
    rows = [*(row._replace(outcome=outcome) for row in TRAIN), *TEST]
    with pytest.raises(DemonstrationsError, match=f"Every one of the 60 outcomes is {outcome:g}") as raised:
        await learn(rows)
    assert "\n" not in str(raised.value)


async def test_rows_on_the_test_side_alone_are_told() -> None:
    with pytest.raises(DemonstrationsError, match="All demonstrations are on the test side"):
        await learn(TEST)


async def test_of_several_models_one_must_be_chosen_that_there_is() -> None:
    rows = [*TRAIN, *(row._replace(model="other", outcome=1 - row.outcome) for row in TRAIN)]
    with pytest.raises(DemonstrationsError, match="of 2 models"):
        await learn(rows)
    table = Demonstrations.from_rows(rows)
    with pytest.raises(DemonstrationsError, match="No demonstration is of the model 'third'"):
        select_training_rows(table, model="third")
    found = select_training_rows(table, model="m")
    assert list(found) == list(Demonstrations.from_rows(TRAIN))
    assert found.models == ("m",)


async def test_a_reward_model_that_there_is_not_is_told() -> None:
    with pytest.raises(UsageError, match="There is no reward model 'forest'"):
        await learn(TRAIN, reward_model="forest")


@pytest.mark.parametrize("reward_model", ["neighbours", "additive"])
@pytest.mark.parametrize("num_rows", [2, 3, 4, 7])
async def test_a_few_rows_are_enough_and_make_a_router_that_abstains(reward_model: str, num_rows: int) -> None:
    rows = [row._replace(outcome=float(number % 2)) for number, row in enumerate(TRAIN[:num_rows])]
    router = await learn(rows, reward_model=reward_model)
    assert router.has_abstained
    assert router.invoke("sum of 1?").prompt == router.best_prompt


@pytest.mark.parametrize("reward_model", ["neighbours", "additive"])
async def test_one_prompt_alone_and_one_right_outcome_among_many_are_learned_from(reward_model: str) -> None:
    alone = [row for row in TRAIN if row.prompt == TRAIN[0].prompt]
    assert (await learn(alone, reward_model=reward_model)).has_abstained
    rare = [row._replace(outcome=float(number == 7)) for number, row in enumerate(TRAIN)]
    assert (await learn(rare, reward_model=reward_model)).has_abstained


def test_what_is_known_of_each_prompt_is_a_mean_over_queries_and_over_counted_calls() -> None:
    trials = [("a", "x", 1.0, 10.0), ("a", "x", 0.0, None), ("b", "x", 1.0, 20.0), ("a", "y", 0.0, None)]
    rows = [Demonstration(query, prompt, outcome, tokens=tokens) for query, prompt, outcome, tokens in trials]
    first, second = describe_prompts(Demonstrations.from_rows(rows))
    assert (first.text, first.num_trials, first.tokens) == ("x", 3, 15.0)
    assert (second.text, second.num_trials, second.tokens) == ("y", 1, None)
    # Of three pairs the mean is a half; it counts as one more query of each prompt.
    np.testing.assert_allclose([first.mean_outcome or 0, second.mean_outcome or 0], [2 / 3, 0.25], rtol=1e-6)
