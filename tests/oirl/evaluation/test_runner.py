"""An evaluation tells what was put into the world, and nothing that was not."""

import asyncio
import csv
from pathlib import Path

import numpy as np
import pytest

from drpo_graph.errors import DemonstrationsError, UsageError
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.evaluation.files import render_report, write_evaluation
from drpo_graph.oirl.evaluation.results import BEST_SINGLE, Evaluation, SelectionRow
from drpo_graph.oirl.evaluation.runner import EvaluationSettings, evaluate_demonstrations
from tests.support.prompt_worlds import PROMPTS, WorldEmbeddings, make_world

pytest.importorskip("sklearn", reason="needs the extra oirl")

QUICK = EvaluationSettings(num_rounds=2, reward_models=("neighbours", "additive"), compared_with="additive")


def evaluate(table: Demonstrations, settings: EvaluationSettings = QUICK) -> Evaluation:
    return asyncio.run(evaluate_demonstrations(table, WorldEmbeddings(), settings=settings))


def find(evaluation: Evaluation, name: str, prompts: str = "training") -> SelectionRow:
    return next(one for one in evaluation.selection if (one.name, one.prompts) == (name, prompts))


def test_a_router_gains_where_queries_prefer_prompts() -> None:
    found = evaluate(make_world(400))
    routed = find(found, "router (neighbours)")
    assert routed.over_single.is_above_zero
    assert found.open_share["router (neighbours)"] == 1.0
    assert find(found, BEST_SINGLE).over_single.mean == 0.0
    assert (
        find(found, "oracle").value.mean
        >= routed.value.mean
        > find(found, "mean of the prompts (random mixture)").value.mean
    )
    # One that ranks prompts alike on every query cannot tell them apart.
    assert routed.over_compared is not None
    additive = find(found, "additive")
    assert additive.over_compared is not None
    assert additive.over_compared.mean == 0.0


def test_a_router_abstains_where_one_prompt_is_best_for_all() -> None:
    found = evaluate(make_world(400, has_preferences=False))
    assert found.open_share == {"router (neighbours)": 0.0, "router (additive)": 0.0}
    assert find(found, "router (neighbours)").over_single.mean == 0.0


def test_equal_seeds_give_equal_evaluations_but_for_time() -> None:
    first, second = (evaluate(make_world(100)).model_copy(update={"speeds": ()}) for _ in range(2))
    assert first.model_dump_json() == second.model_dump_json()


def test_prompts_seen_on_the_test_side_alone_are_held_out_and_priced_in_labelled_calls() -> None:
    new = ("Count with a friend.", "Draw with a pencil.")
    found = evaluate(make_world(300, test_share=0.3, held_out=new))
    assert found.has_own_split
    assert found.held_out_prompts == new
    assert {one.prompts for one in found.selection} == {"training", "held-out", "all"}
    assert {one.prompts for one in found.fits} == {"training", "held-out"}
    assert len(found.labelled_calls) == 4
    # No row of theirs is learned from: all are on the test side.
    assert find(found, "router (additive)", "held-out").value.mean == pytest.approx(0.2, abs=0.15)


def test_a_split_that_leaks_is_told_and_replaced() -> None:
    table = make_world(100, test_share=0.3)
    leaking = [one._replace(split="train") for one in table if one.split == "test"][:30]
    found = evaluate(Demonstrations.from_rows([*table, *leaking]))
    assert not found.has_own_split
    assert found.leak is not None
    assert "10 of 30 test queries stand on the training side too" in found.leak
    assert found.leak in render_report(found)


def test_prompts_can_be_held_out_by_number() -> None:
    found = evaluate(make_world(100), QUICK.model_copy(update={"num_held_out": 1}))
    assert len(found.held_out_prompts) == 1
    assert len(found.training_prompts) == 2
    with pytest.raises(DemonstrationsError, match="3 of 3 prompts cannot be held out"):
        evaluate(make_world(100), QUICK.model_copy(update={"num_held_out": 3}))


def test_every_set_of_training_prompts_is_learned_from_on_demand() -> None:
    found = evaluate(make_world(60), QUICK.model_copy(update={"has_subsets": True, "num_rounds": 1}))
    assert [len(one.prompts) for one in found.subsets] == [1, 1, 1, 2, 2, 2, 3]
    assert found.subsets[0].values["training"] == found.subsets[0].best_single


def test_an_unknown_reward_model_is_named() -> None:
    with pytest.raises(UsageError, match="no reward model 'oracle'"):
        evaluate(make_world(30), QUICK.model_copy(update={"reward_models": ("oracle",)}))


def test_files_hold_what_was_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra oirl")
    found = evaluate(make_world(100, test_share=0.3, held_out=("Count | twice.", "Draw\nlines.")))
    files = write_evaluation(tmp_path / "out", found)
    names = {one.name for one in files}
    assert {"evaluation.json", "report.md", "selection.csv", "fit.csv", "labelled_calls.csv", "selection.png"} <= names
    assert Evaluation.model_validate_json((tmp_path / "out/evaluation.json").read_bytes()) == found
    with (tmp_path / "out/selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.selection)
    first = next(one for one in rows if one["choice"] == BEST_SINGLE and one["among"] == "training")
    assert float(first["value %"]) == pytest.approx(100 * find(found, BEST_SINGLE).value.mean, abs=0.06)
    report = (tmp_path / "out/report.md").read_text()
    assert all(line.count(" | ") >= 2 for line in report.splitlines() if line.startswith("| "))
    with pytest.raises(DemonstrationsError, match="cannot be written"):
        write_evaluation(tmp_path / "out/report.md", found)


def test_outcomes_between_wrong_and_right_are_evaluated_without_an_oracle_s_noise() -> None:
    rows = [one._replace(outcome=0.25 + one.outcome / 2) for one in make_world(100)]
    found = evaluate(Demonstrations.from_rows(rows))
    assert found.oracles == ()
    assert find(found, "oracle").value.mean <= 0.75


def test_pairs_that_were_never_tried_are_left_out() -> None:
    rows = [one for number, one in enumerate(make_world(200)) if number % 5]
    found = evaluate(Demonstrations.from_rows(rows))
    assert not np.isnan(find(found, "neighbours").value.mean)
    assert not np.isnan(find(found, "router (neighbours)").over_single.mean)


def test_several_models_are_told_apart() -> None:
    rows = [*make_world(30), *(one._replace(model="other") for one in make_world(30, seed=1))]
    table = Demonstrations.from_rows(rows)
    with pytest.raises(DemonstrationsError, match="2 models"):
        evaluate(table)
    found = asyncio.run(evaluate_demonstrations(table, WorldEmbeddings(), settings=QUICK, model="world"))
    assert found.num_rows == 30 * len(PROMPTS)


def test_one_prompt_alone_is_no_choice() -> None:
    rows = [Demonstration(f"Sum {number}.", "Count.", float(number % 2)) for number in range(40)]
    found = evaluate(Demonstrations.from_rows(rows))
    assert find(found, "router (additive)").over_single.mean == 0.0
