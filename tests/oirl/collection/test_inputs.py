"""Prompts read from files, sides, and the order of trials."""

import json
from pathlib import Path

import pytest

from drpo_graph.errors import DatasetError, UsageError
from drpo_graph.oirl.collection import TriedPrompt, load_tried_prompts
from drpo_graph.oirl.collection.inputs import Question, check_prompts, check_sides, make_questions
from drpo_graph.oirl.collection.plan import Plan, Unit
from drpo_graph.parts.checkers import load_checker
from tests.oirl.collection.script import PROMPTS, sums

NUMERIC = load_checker("numeric")


def test_prompts_are_read_from_lines_lists_and_text(tmp_path: Path) -> None:
    records: list[object] = [{"name": "a", "prompt": "Think.", "split": "test"}, {"prompt": "Check."}, "Go\u2028on."]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    (tmp_path / "p.json").write_text(json.dumps(records))
    (tmp_path / "p.txt").write_text("Think.\n\n  Check.  \n")
    expected = (
        TriedPrompt(name="a", prompt="Think.", split="test"),
        TriedPrompt(name="prompt-2", prompt="Check."),
        TriedPrompt(name="prompt-3", prompt="Go\u2028on."),
    )
    assert load_tried_prompts(tmp_path / "p.jsonl") == load_tried_prompts(tmp_path / "p.json") == expected
    assert [one.prompt for one in load_tried_prompts(tmp_path / "p.txt")] == ["Think.", "Check."]


def test_bundled_prompts_are_six_with_names_of_their_own() -> None:
    assert len({one.name for one in load_tried_prompts()}) == 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", "{}", "expected a list of records"),
        ("p.json", "[", "not JSON"),
        ("p.jsonl", '{"name": "a"}\n', "prompt 1"),
        ("p.jsonl", '{"prompt": "x", "split": "dev"}\n', "split"),
        ("p.jsonl", '"x"\n3\n', "prompt 2"),
        ("p.txt", "\n", "no prompt"),
        ("p.txt", "x\nx\n", "same prompt"),
    ],
)
def test_file_without_usable_prompts_is_refused_in_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DatasetError, match=said) as caught:
        load_tried_prompts(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="No such file"):
        load_tried_prompts(tmp_path / "missing.txt")


def test_prompts_with_one_name_or_one_text_are_refused() -> None:
    for given, said in (
        ([], "no prompt"),
        ([PROMPTS[0], PROMPTS[0].model_copy(update={"prompt": "x"})], "have the name"),
        ([PROMPTS[0], PROMPTS[0].model_copy(update={"name": "x"})], "same prompt"),
        ([TriedPrompt(name="x", prompt=" ")], "blank"),
    ):
        with pytest.raises(DatasetError, match=said):
            check_prompts(given)


def test_sides_go_by_text_and_seed_and_neither_is_empty() -> None:
    given = sums(40)
    first, again, other = (
        {one.query.text: one.split for one in make_questions(queries, checker=NUMERIC, test_share=0.3, seed=seed)}
        for queries, seed in ((given, 1), (given[::-1], 1), (given, 2))
    )
    assert first == again != other
    assert sum(side == "test" for side in first.values()) == 12
    for share in (0.01, 0.999):
        with pytest.raises(DatasetError, match="at least one on each"):
            make_questions(given, checker=NUMERIC, test_share=share)


def test_held_out_prompts_need_a_test_side_and_the_others_need_prompts() -> None:
    held_out = [PROMPTS[0].model_copy(update={"split": "test"})]
    questions = make_questions(sums(4), checker=NUMERIC)
    with pytest.raises(UsageError, match="--test-share"):
        check_sides(questions, held_out)
    sided = make_questions(sums(4), checker=NUMERIC, test_share=0.5)
    with pytest.raises(UsageError, match="would have none"):
        check_sides(sided, held_out)
    check_sides(sided, [*held_out, PROMPTS[1]])


def make_plan(sides: str, *, num_trials: int = 2) -> Plan:
    questions = [
        Question(query=one.query, split="test" if side == "1" else "")
        for one, side in zip(sums(len(sides)), sides, strict=True)
    ]
    prompts = [PROMPTS[0], PROMPTS[1].model_copy(update={"split": "test"}), PROMPTS[2]]
    return Plan.make(questions, prompts, num_trials=num_trials, model="m", checker="numeric")


def test_plan_names_each_trial_once_from_whatever_place_it_is_taken() -> None:
    plan = make_plan("01100")
    whole = plan.take(0, 1000)
    assert len(whole) == len(set(whole)) == plan.num_planned == 2 * (3 * 2 + 2 * 3)
    assert all(unit.prompt != 1 for unit in whole if unit.query not in (1, 2))
    for size in (1, 5, 7, 24):
        taken: list[Unit] = []
        while batch := plan.take(len(taken), size):
            taken += batch
        assert taken == whole
    assert [Unit.parse(unit.key) for unit in whole] == whole
    assert Plan.parse(plan.as_json()) == plan
