"""What is odd about a table and no reason to refuse it."""

import pytest

from drpo_graph.errors import DemonstrationsError
from drpo_graph.oirl.checks import FEW_TRIALS, check_demonstrations, choose_model, list_models
from drpo_graph.oirl.demonstrations import Demonstration, Demonstrations
from drpo_graph.oirl.summary import summarise_demonstrations


def rows(num: int = FEW_TRIALS, *, prompt: str = "p", **fields: object) -> list[Demonstration]:
    """As many trials on as many queries, every second one right."""
    return [Demonstration(f"{prompt} {n}", prompt, float(n % 2))._replace(**fields) for n in range(num)]


def check(*given: list[Demonstration]) -> tuple[str, ...]:
    return check_demonstrations(Demonstrations.from_rows(row for part in given for row in part))


def test_nothing_odd_is_nothing_told() -> None:
    assert check(rows()) == ()
    assert check(rows(split="train"), rows(prompt="p")[:0]) == ()


def test_repeated_draws_are_told_with_the_share_that_contradict() -> None:
    again = [rows()[0], rows()[1], rows()[1]._replace(outcome=0.0)]
    assert check(rows(), again) == (
        "3 of 33 rows repeat a query, prompt and model: repeated draws are averaged. Leave copies of a row out.",
        "1 of 2 repeated trials (50%) contradict each other: that much is chance, and the mean counts.",
    )


def test_what_another_model_or_side_says_is_no_repetition() -> None:
    assert check(rows(), rows(model="other")) == ("The rows are of 2 models ('', 'other'): choose one to learn from.",)
    (line,) = check(rows(split="train"), rows(split="test"))
    assert line.startswith("30 of 30 test queries stand on the training side too")


def test_one_outcome_is_told() -> None:
    assert check(rows(outcome=1.0)) == ("Every outcome is 1: there is nothing to learn from.",)


def test_few_trials_are_told() -> None:
    assert check(rows(), rows(3, prompt="rare"), rows(FEW_TRIALS - 1, prompt="rarer")) == (
        "2 prompts with fewer than 30 trials: 'rare', 'rarer'; the fewest are 3. Means of so few are rough.",
    )


def test_prompts_on_one_side_alone_are_told() -> None:
    found = check(
        rows(split="train"),
        [row._replace(query=f"test {row.query}", split="test") for row in rows()],
        rows(prompt="new", split="test"),
        rows(prompt="old", split="train"),
    )
    assert found == (
        "1 prompt on the test side alone, held out: 'new'.",
        "1 prompt on the training side alone, never tested: 'old'.",
    )


def test_rows_on_neither_side_are_told() -> None:
    assert check(rows(split="train"), rows(5)) == ("5 of 35 rows are on neither side.",)


def test_a_text_that_is_written_in_two_ways_is_told() -> None:
    assert check(rows(), [rows()[0]._replace(query="P  0")]) == (
        "31 queries are 30 texts, some of them written in several ways.",
    )


def test_a_model_is_chosen_where_there_are_several() -> None:
    found = Demonstrations.from_rows([*rows(2, model="one"), *rows(3, model="two")])
    assert list_models(found) == ("one", "two")
    with pytest.raises(DemonstrationsError, match="of 2 models \\('one', 'two'\\): choose one"):
        choose_model(found)
    with pytest.raises(DemonstrationsError, match="of the model 'three': there are those of 'one', 'two'"):
        choose_model(found, "three")
    assert len(choose_model(found, "two")) == 3
    assert list_models(choose_model(found, "two")) == ("two",)
    alone = Demonstrations.from_rows(rows(2))
    assert choose_model(alone) is choose_model(alone, "") is alone


def test_a_summary_counts_what_has_rows() -> None:
    found = Demonstrations.from_rows([*rows(4, split="train"), *rows(2, prompt="q", split="test", tokens=7.0)])
    summary = summarise_demonstrations(found)
    assert (summary.num_rows, summary.num_queries, summary.num_tokens_known) == (6, 6, 2)
    assert {side: tuple(one) for side, one in summary.by_side.items()} == {"train": (4, 4, 0.5), "test": (2, 2, 0.5)}
    assert [(one.name, list(one.by_side), one.mean_tokens) for one in summary.prompts] == [
        ("p", ["train"], None),
        ("q", ["test"], 7.0),
    ]
    part = summarise_demonstrations(found.take(found.is_in("test")))
    assert (part.num_queries, [one.name for one in part.prompts]) == (2, ["q"])
