from pathlib import Path

import pytest
from rich.cells import cell_len

from drpo_graph.display.summary import render_summary
from drpo_graph.records import RunResult
from tests.display.sample_events import BEST_PROMPT, COMMANDS, INITIAL_PROMPT, page_of, sample_result, sample_validation
from tests.support.hostile import HOSTILE, is_inert


def summary_of(
    result: RunResult, *, width: int = 120, files: tuple[Path, ...] = (), commands: tuple[str, ...] = ()
) -> str:
    return page_of(render_summary(result, elapsed_s=72, files=files, commands=commands), width=width)


def test_prompt_is_shown_line_by_line_so_that_it_can_be_copied() -> None:
    page = summary_of(sample_result())
    for line in BEST_PROMPT.splitlines():
        assert f" {line}".rstrip() in [shown.rstrip() for shown in page.splitlines()]


def test_reward_is_compared_on_the_same_queries_where_known() -> None:
    assert "4.32  initial prompt 3.11 on the same queries  +1.21" in summary_of(sample_result())


def test_rewards_from_different_queries_are_not_subtracted() -> None:
    page = summary_of(sample_result(initial_reward_same_queries=None), width=160)
    assert "4.32 on the queries of its level, not compared with the initial prompt on the same queries; " in page
    assert "that one had 3.04 on the root's queries" in page
    assert "+1.28" not in page


def test_unscored_reward_is_said_and_not_zero() -> None:
    page = summary_of(sample_result(reward=None, initial_reward_same_queries=None))
    assert "unscored on the queries" in page


def test_initial_prompt_that_won_is_called_so() -> None:
    page = summary_of(sample_result(system_prompt=INITIAL_PROMPT, candidate_id="0", trace=("0",)))
    assert "initial prompt kept" in page
    assert "no rewrite was chosen" in page


def test_significant_improvement_comes_with_its_interval() -> None:
    page = summary_of(sample_result())
    assert "validation   significant improvement " in page
    assert "+0.82  95% interval [+0.41, +1.20] on 40 held-out queries" in page


def test_no_significant_improvement_is_said_plainly() -> None:
    validation = sample_validation(is_significant=False, selected_id="0")
    page = summary_of(sample_result(validation=validation))
    assert "no significant improvement over the initial prompt" in page
    assert "95% interval [-0.12, +1.20]" in page
    assert "best contender 4.0.2; initial prompt kept" in page


def test_missing_validation_is_said() -> None:
    assert "a gain may be chance" in summary_of(sample_result(validation=None))


@pytest.mark.parametrize(
    ("changes", "title", "said"),
    [
        ({}, "best prompt", "better than the initial prompt on held-out queries, by more than chance"),
        (
            {"validation": sample_validation(is_significant=False)},
            "best prompt",
            "on held-out queries, by no more than chance may do",
        ),
        ({"validation": None}, "best prompt", "on the few queries that it was chosen by; hold queries out"),
        (
            {"validation": None, "initial_reward_same_queries": None},
            "prompt found, not compared with the initial one",
            "none that it is better: not compared with the initial prompt on the same queries",
        ),
        (
            {"validation": None, "initial_reward_same_queries": 4.32},
            "prompt found",
            "none that it is better: the initial prompt scored no lower on the same queries",
        ),
        (
            {"validation": None, "system_prompt": INITIAL_PROMPT, "candidate_id": "0", "trace": ("0",)},
            "initial prompt kept",
            "no rewrite was shown to be better on the same queries, and a tie replaces nothing",
        ),
    ],
)
def test_the_evidence_is_told_at_the_result(changes: dict[str, object], title: str, said: str) -> None:
    page = summary_of(sample_result(**changes), width=200)
    assert title in page.splitlines()[0]
    assert said in next(line for line in page.splitlines() if line.startswith("evidence"))


def test_embedded_model_shows_that_the_search_runs_and_no_more() -> None:
    page = page_of(render_summary(sample_result(), elapsed_s=1, models=["openai:m", "local:smollm2"]), width=160)
    (line,) = (line for line in page.splitlines() if line.startswith("evidence"))
    assert "that the search runs on this machine" in line
    assert "better than" not in line


def test_cost_is_given_by_role_and_in_all() -> None:
    lines = [line.split() for line in summary_of(sample_result()).splitlines()]
    assert ["base", "95", "15k", "27k", "28%"] in lines
    assert ["total", "95", "15k", "27k", "28%"] in lines


def test_failures_are_listed_only_if_any() -> None:
    assert "http_429 1, unparsable 1" in summary_of(sample_result())
    assert "failures" not in summary_of(sample_result(failures_by_kind={}))


@pytest.mark.parametrize("width", [60, 200])
def test_files_and_commands_stay_whole_lines(width: int) -> None:
    path = Path("/data/experiments/2026/alignment/brisk-heron-42/with/a/long/name/result.json")
    lines = summary_of(sample_result(), width=width, files=(path,), commands=COMMANDS).splitlines()
    assert any(line.endswith(str(path)) for line in lines)
    assert all(any(line.endswith(command) for line in lines) for command in COMMANDS)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    for result in (sample_result(), sample_result(initial_reward_same_queries=None), hostile_result()):
        assert max(map(cell_len, summary_of(result, width=width).splitlines())) <= width


def test_hostile_prompt_is_shown_inert() -> None:
    page = summary_of(hostile_result())
    assert is_inert(page)
    assert "[bold]markup[/bold]" in page


def test_very_long_prompt_says_what_is_hidden() -> None:
    assert "… 3000 more characters" in summary_of(sample_result(system_prompt="x" * 9000))


def hostile_result() -> RunResult:
    return sample_result(
        thread_id=HOSTILE,
        system_prompt=HOSTILE,
        candidate_id=HOSTILE,
        trace=("0", HOSTILE),
        failures_by_kind={HOSTILE: 1},
    )
