"""Replies of models: lenient about form, strict about content, and nothing but ``ReplyError`` when it cannot be."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drpo_graph.errors import ReplyError
from drpo_graph.parts.near_json import read_near_json
from drpo_graph.parts.parsing import (
    extract_json,
    parse_critique,
    parse_critique_published,
    parse_metric_selection,
    parse_rewrite,
    parse_score,
)
from drpo_graph.records import Critique, Metric, MetricSelection
from drpo_graph.safety.texts import shorten

CLARITY = Metric(name="Clarity", definition="Is it clear?")
THINKING = Metric(name="Critical-Thinking", definition="Is it thought through?")
KNOWN = [CLARITY, THINKING, *(Metric(name=f"M{number}", definition="d") for number in range(6))]

REWRITE = {"analysis": "a", "new_system_prompt": "Be brief."}


def scores_of(critique: Critique) -> dict[str, float]:
    return {one.metric: one.score for one in critique.scores}


def names_of(selection: MetricSelection) -> list[str]:
    return [metric.name for metric in selection.metrics]


@pytest.mark.parametrize(
    "value",
    [4, 4.0, "4", " 4 ", "4/5", "4 / 5", "4.0", "4.0/5", "4 out of 5", "4 Out Of 5", "4 (agree)", "4/5 (good)", "04"],
)
def test_score_is_read_in_these_forms(value: Any) -> None:
    assert parse_score(value, metric="Clarity") == 4


@pytest.mark.parametrize(
    "value",
    [
        7, 0, -1, 6, "7", "0", "-4", "four", "", "4.5", 4.5, "4/10", "4 out of 10", "3-4", "4, 5", "5 4", True, False,
        None, [], [4], {}, {"score": 4}, 10**30, "9" * 5000, 1e300, "4/5/5", "5!", "½", "²",
        float("nan"), float("inf"), float("-inf"),
    ],
)  # fmt: skip
def test_anything_else_is_no_score(value: Any) -> None:
    with pytest.raises(ReplyError, match="'Clarity'"):
        parse_score(value, metric="Clarity")


@pytest.mark.parametrize("score", [1, 2, 3, 4, 5])
def test_all_whole_scores_of_the_scale_are_kept(score: int) -> None:
    assert parse_score(score, metric="m") == parse_score(str(score), metric="m") == score


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        ' \n{"a": 1}\n',
        'Sure! Here it is: {"a": 1}. Anything else?',
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}\n```',
        'The form {like this} asks for {"a": 1}',
        'Sets {1, 2} and {} come before? No: {"a": 1}'.replace("{} ", ""),
        '{{"a": 1}}',
        '<think>{"draft": </think>{"a": 1}',
        '[{"a": 1}, {"b": 2}]',
        '{"a": 1} {"b": 2}',
    ],
)
def test_json_object_is_found_alone_in_prose_and_in_fences(text: str) -> None:
    assert extract_json(text) == {"a": 1}


def test_outer_object_of_a_nested_one_is_taken() -> None:
    assert extract_json('x {"a": {"b": {"c": "}"}}} y') == {"a": {"b": {"c": "}"}}}


def test_line_breaks_inside_strings_are_accepted() -> None:
    assert extract_json('{"a": "one\ntwo\tthree"}') == {"a": "one\ntwo\tthree"}


@pytest.mark.parametrize("text", ["", "no", "[1, 2]", '"a"', "null", "{", "}{", '{"a": 1', "{a: 1}", "{" * 200])
def test_reply_without_an_object_is_a_failure(text: str) -> None:
    with pytest.raises(ReplyError, match="expected a JSON object"):
        extract_json(text)


def test_deep_nesting_is_a_failure_and_no_crash() -> None:
    with pytest.raises(ReplyError):
        extract_json('{"a":' * 5_000)
    with pytest.raises(ReplyError):
        extract_json('{"a":' + "[" * 100_000)


@pytest.mark.parametrize(
    "reply",
    [
        {"Clarity": {"rationale": "r", "score": 4}, "Critical-Thinking": {"rationale": "s", "score": "2/5"}},
        {"critical thinking": {"score": 2}, "CLARITY": {"score": 4, "rationale": "r"}},
        {"Clarity": 4, "Critical_Thinking": "2"},
        {"scores": {"Clarity": 4, "CriticalThinking": 2}},
        {"scores": [{"metric": "clarity", "score": 4}, {"name": "critical-thinking", "score": 2}]},
        {"Clarity": {"score": 4}, "Critical-Thinking": {"score": 2}, "Overall": {"score": 9}, "note": "ok"},
    ],
)
def test_critique_has_one_score_per_metric_asked_for_in_that_order(reply: object) -> None:
    critique = parse_critique(f"Here:\n```json\n{json.dumps(reply)}\n```", metrics=[CLARITY, THINKING])
    assert [(one.metric, one.score) for one in critique.scores] == [("Clarity", 4), ("Critical-Thinking", 2)]
    assert critique.reward == 3.0


def test_rationale_is_kept() -> None:
    reply = {"Clarity": {"rationale": "Muddled.", "score": 2}, "Critical-Thinking": {"reason": "Sound.", "score": 4}}
    critique = parse_critique(json.dumps(reply), metrics=[CLARITY, THINKING])
    assert [one.rationale for one in critique.scores] == ["Muddled.", "Sound."]


def test_missing_metric_is_a_failure_that_names_it() -> None:
    with pytest.raises(ReplyError, match=r"no score for metric 'Critical-Thinking' \(got clarity\)"):
        parse_critique('{"Clarity": {"score": 4}}', metrics=[CLARITY, THINKING])


@pytest.mark.parametrize("score", [7, 0, "four", 4.5, True, None, "", [], {"value": 4}])
def test_one_bad_score_is_a_failure_not_a_guess(score: object) -> None:
    reply = {"Clarity": {"score": score}, "Critical-Thinking": {"score": 4}}
    with pytest.raises(ReplyError):
        parse_critique(json.dumps(reply), metrics=[CLARITY, THINKING])


@pytest.mark.parametrize("text", ["{}", '{"scores": null}', '{"scores": 4}', '{"scores": []}', "I would rather not."])
def test_critique_without_scores_is_a_failure(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_critique(text, metrics=[CLARITY])


def critique_of(score: int, other: int = 2) -> str:
    """Return a critique as JSON, its rationale of its own."""
    return json.dumps({"Clarity": {"score": score, "rationale": f"r{score}"}, "Critical Thinking": {"score": other}})


@pytest.mark.parametrize(
    "text",
    [
        f"For example {critique_of(5)}. Mine: {critique_of(2)}",
        f"Draft:\n```json\n{critique_of(5)}\n```\nFinal:\n```json\n{critique_of(4)}\n```",
        f"The answer was [{critique_of(1)}]; I say {critique_of(4)}",
        f"{critique_of(4).replace('}}', '},}')} {critique_of(3)}",
        f"{critique_of(4)} {{broken: {critique_of(3)}",
    ],
)
def test_two_objects_with_different_scores_are_no_critique(text: str) -> None:
    with pytest.raises(ReplyError, match="got two with different scores"):
        parse_critique(text, metrics=[CLARITY, THINKING])
    # The published code takes the first.
    assert parse_critique_published(text).scores


@pytest.mark.parametrize(
    "text",
    [
        f"{critique_of(4)} I say again: {critique_of(4)}",
        critique_of(4) + ' The answer was {"Clarity": {"score": 1}}, and [1, 2].',
        f"<think>Perhaps {critique_of(1)}.</think>{critique_of(4)}",
        f"{critique_of(4)} {critique_of(9)}",
        json.dumps([{"metric": "Clarity", "score": 4}, {"metric": "Critical Thinking", "score": 2}]),
        f"{critique_of(4)} {'{' * 5000}",
    ],
)
def test_other_objects_in_a_reply_do_no_harm(text: str) -> None:
    assert [one.score for one in parse_critique(text, metrics=[CLARITY, THINKING]).scores] == [4, 2]


def test_metric_called_scores_can_be_scored() -> None:
    metric = Metric(name="Scores", definition="d")
    assert scores_of(parse_critique('{"Scores": {"score": 4}}', metrics=[metric])) == {"Scores": 4}


def test_published_critique_takes_whatever_metrics_and_scores_come() -> None:
    reply = {"Clarity": {"score": "7", "rationale": "r"}, "overall": {"score": 4.9}, "x": {"score": 0}}
    assert scores_of(parse_critique_published(json.dumps(reply))) == {"Clarity": 7, "overall": 4, "x": 0}


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"Clarity": {"score": "4/5"}},
        {"Clarity": {"score": "4.5"}},
        {"Clarity": {"score": None}},
        {"Clarity": {}},
        {"Clarity": {"score": [4]}},
        {"Clarity": "good"},
        [4],
    ],
)
def test_published_critique_fails_where_the_published_code_does(reply: object) -> None:
    with pytest.raises(ReplyError):
        parse_critique_published(json.dumps(reply))


def test_published_critique_with_an_infinite_score_is_a_failure() -> None:
    for value in ("1e999", "NaN", "-Infinity"):
        with pytest.raises(ReplyError):
            parse_critique_published(f'{{"Clarity": {{"score": {value}}}}}')


@pytest.mark.parametrize(
    "names", [["Clarity", "Critical-Thinking"], ["clarity", "critical thinking"], ["CLARITY", "CriticalThinking"]]
)
def test_known_metrics_are_found_in_any_spelling(names: list[str]) -> None:
    selection = parse_metric_selection(json.dumps({"reasoning": "r", "metrics": names}), known=KNOWN)
    assert selection == MetricSelection(metrics=(CLARITY, THINKING), reasoning="r")


def test_new_metric_with_a_definition_is_taken() -> None:
    new = {"name": " Rhyme  Scheme ", "definition": "Does it\nrhyme?"}
    reply = {"metrics": ["Clarity"], "new_metrics": [new]}
    selection = parse_metric_selection(json.dumps(reply), known=KNOWN)
    assert selection.metrics == (CLARITY, Metric(name="Rhyme Scheme", definition="Does it rhyme?"))


@pytest.mark.parametrize(
    "new", ["Rhyme", {"name": "Rhyme"}, {"name": "Rhyme", "definition": " "}, {"name": 3}, 3, None]
)
def test_new_metric_without_a_definition_is_dropped(new: object) -> None:
    reply = {"metrics": ["Clarity", new], "new_metrics": [new]}
    assert names_of(parse_metric_selection(json.dumps(reply), known=KNOWN)) == ["Clarity"]


def test_new_metric_cannot_redefine_a_known_one() -> None:
    reply = {"metrics": [], "new_metrics": [{"name": "CLARITY", "definition": "Always 5."}]}
    assert parse_metric_selection(json.dumps(reply), known=KNOWN).metrics == (CLARITY,)


def test_metric_named_twice_counts_once() -> None:
    reply = {"metrics": ["Clarity", "clarity", "Critical-Thinking", "Critical Thinking"]}
    assert names_of(parse_metric_selection(json.dumps(reply), known=KNOWN)) == ["Clarity", "Critical-Thinking"]


def test_no_more_than_five_metrics_are_taken_unless_told_otherwise() -> None:
    names = [metric.name for metric in KNOWN]
    reply = json.dumps({"metrics": names})
    assert names_of(parse_metric_selection(reply, known=KNOWN)) == names[:5]
    assert names_of(parse_metric_selection(reply, known=KNOWN, max_metrics=3)) == names[:3]


def test_published_form_of_a_selection_is_read() -> None:
    reply = {"aspects_selection": {"reasoning": "r", "selected_aspects": ["Clarity"]}}
    assert parse_metric_selection(json.dumps(reply), known=KNOWN) == MetricSelection(metrics=(CLARITY,), reasoning="r")


@pytest.mark.parametrize(
    "reply", [{}, {"metrics": []}, {"metrics": "Clarity"}, {"metrics": ["Wit"]}, {"metrics": [3, None, "", "--"]}, []]
)
def test_selection_without_a_usable_name_is_a_failure(reply: object) -> None:
    with pytest.raises(ReplyError):
        parse_metric_selection(json.dumps(reply), known=KNOWN)


def test_rewrite_is_the_new_system_prompt() -> None:
    assert parse_rewrite(json.dumps(REWRITE)) == "Be brief."
    assert parse_rewrite(f"Sure:\n```json\n{json.dumps(REWRITE)}\n```") == "Be brief."


def test_rewrite_on_one_line_with_literal_line_breaks_is_unfolded() -> None:
    assert parse_rewrite(json.dumps({"new_system_prompt": r"One.\nTwo."})) == "One.\nTwo."


def test_literal_line_break_in_a_prompt_of_several_lines_is_meant() -> None:
    prompt = "Join the lines with \\n.\nBe brief."
    assert parse_rewrite(json.dumps({"new_system_prompt": prompt})) == prompt
    assert parse_rewrite(json.dumps({"new_system_prompt": prompt}), is_compat=True) == prompt.replace("\\n", "\n")


def test_the_placeholder_of_a_prompt_is_no_prompt() -> None:
    copied = json.dumps({"new_system_prompt": "<the complete new system prompt>"})
    with pytest.raises(ReplyError, match="stands in its place"):
        parse_rewrite(copied)
    assert parse_rewrite(copied, is_compat=True) == "<the complete new system prompt>"
    assert parse_rewrite(json.dumps({"new_system_prompt": "<b>Be</b> brief."})) == "<b>Be</b> brief."


@pytest.mark.parametrize("value", [None, "", "  \n", 3, ["Be brief."], {"text": "Be brief."}])
@pytest.mark.parametrize("is_compat", [False, True])
def test_rewrite_without_a_prompt_is_a_failure(value: object, is_compat: bool) -> None:
    with pytest.raises(ReplyError):
        parse_rewrite(json.dumps({"new_system_prompt": value}), is_compat=is_compat)
    with pytest.raises(ReplyError):
        parse_rewrite("{}", is_compat=is_compat)


def test_error_messages_stay_on_one_short_line() -> None:
    with pytest.raises(ReplyError) as caught:
        extract_json("no\n" * 10_000)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@given(st.text())
def test_shortened_text_fits(text: str) -> None:
    assert len(shorten(text)) <= 120
    assert len(shorten(text).splitlines()) <= 1


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["4/5", "Clarity", "5"])
)
keys = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["Clarity", "score", "scores", "metric", "metrics", "name", "definition", "new_metrics", "rationale", "reason",
         "reasoning", "aspects_selection", "selected_aspects", "new_system_prompt"]
    ),
)  # fmt: skip
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
json_replies = st.builds(
    lambda value, before, after: f"{before}{json.dumps(value)}{after}",
    st.dictionaries(keys, json_values, max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
)
bracket_soup = st.text(alphabet='{}[]":,\\ \n01e-aN', max_size=60)

PARSERS: dict[str, Callable[[str], object]] = {
    "extract": extract_json,
    "critique": lambda text: parse_critique(text, metrics=[CLARITY, THINKING]),
    "critique_of_one": lambda text: parse_critique(text, metrics=[CLARITY]),
    "critique_published": parse_critique_published,
    "selection": lambda text: parse_metric_selection(text, known=KNOWN),
    "rewrite": parse_rewrite,
    "rewrite_compat": lambda text: parse_rewrite(text, is_compat=True),
}


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(text=st.one_of(st.text(), bracket_soup, json_replies))
@example(text='{"Clarity": {"score": 1e999}}')
@example(text='{"Clarity": {"score": NaN}}')
@example(text='{"Clarity": {"score": -Infinity}}')
@example(text='{"Clarity": {"score": "' + "1" * 5000 + '"}}')
@example(text='{"Clarity": {"score": ' + "1" * 5000 + "}}")
@example(text='{"Clarity": {"score": "\ud800"}}')
@example(text='{"new_system_prompt": "\\ud800"}')
def test_arbitrary_text_never_raises_anything_but_reply_error(name: str, text: str) -> None:
    with contextlib.suppress(ReplyError):
        PARSERS[name](text)


@given(json_replies)
def test_whatever_is_parsed_is_within_the_scale(text: str) -> None:
    try:
        critique = parse_critique(text, metrics=[CLARITY])
    except ReplyError:
        return
    assert [one.metric for one in critique.scores] == ["Clarity"]
    assert critique.scores[0].score in {1, 2, 3, 4, 5}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=2), st.text(max_size=20), st.text(max_size=20))
def test_wellformed_critique_is_read_whatever_its_rationales(scores: list[int], first: str, second: str) -> None:
    reply = {
        "Clarity": {"rationale": first, "score": scores[0]},
        "Critical-Thinking": {"rationale": second, "score": scores[1]},
    }
    critique = parse_critique(json.dumps(reply), metrics=[CLARITY, THINKING])
    assert [(one.score, one.rationale) for one in critique.scores] == [(scores[0], first), (scores[1], second)]


BRACES_AND_STRINGS = re.compile(r'[{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


def is_closed(text: str, start: int) -> bool:
    """Return whether the brace at a place is closed, by reading on from there."""
    depth = 0
    for token in BRACES_AND_STRINGS.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return True
    return False


@given(bracket_soup)
@example('{a "b" {} 5" } {"c')
@example('{"a\\"}" {}')
def test_an_object_is_looked_for_within_closed_braces_only(text: str) -> None:
    decoder, found = json.JSONDecoder(strict=False), None
    place = text.find("{")
    num_near = 0
    while place >= 0 and found is None:
        try:
            found = decoder.raw_decode(text, place)[0]
        except ValueError:
            num_near += 1
            found = read_near_json(text, place) if num_near <= 8 else None
        place = text.find("{", place + 1) if is_closed(text, place) else -1
    if found is None:
        with pytest.raises(ReplyError):
            extract_json(text)
    else:
        assert repr(extract_json(text)) == repr(found)


def num_steps(text: str) -> int:
    """Return how many lines of Python it takes to look for an object in a text that holds none."""
    number = 0

    def trace(frame: object, event: str, _: object) -> Any:
        nonlocal number
        number += event == "line"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(ReplyError):
            extract_json(text)
    finally:
        sys.settrace(former)
    return number


@pytest.mark.parametrize("parts", ["{}", ('{"a":', "}"), ('{"a" ', "}"), ("{", ""), ('{"\\"', "}")])
def test_braces_without_end_take_no_more_than_their_share_of_work(parts: Sequence[str]) -> None:
    few, many = (num_steps(parts[0] * number + parts[1] * number) for number in (100, 1600))
    assert many < 20 * few
