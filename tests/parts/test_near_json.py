"""Replies that are nearly JSON, and names that are nearly the ones asked for: one reading, or none."""

import json

import pytest

from drpo_graph.errors import ReplyError
from drpo_graph.icl.nodes import parse_response
from drpo_graph.models.request import Choice
from drpo_graph.models.token_scores import ScoreToken
from drpo_graph.parts.near_json import read_near_json
from drpo_graph.parts.parsing import extract_json, parse_critique, parse_metric_selection, parse_rewrite, parse_score
from drpo_graph.parts.soft_scores import soften_critique
from drpo_graph.records import Metric

HELPFULNESS = Metric(name="Helpfulness", definition="Does it help?")
DEPTH = Metric(name="Critical-Depth", definition="Is it deep?")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "b": [1, 2,],}', {"a": 1, "b": [1, 2]}),
        ('{"a": 1, // the first\n "b": 2}', {"a": 1, "b": 2}),
        ('{"a": /* why? */ 1 # so\n, /* end */}', {"a": 1}),
        ("{'a': 'it is \"so\"', 'b': None, 'c': True}", {"a": 'it is "so"', "b": None, "c": True}),
        ("{'a': 'it\\'s', \"b\": \"it\\'s\"}", {"a": "it's", "b": "it's"}),
        ('{"a": **4**, "b": 4/5, "c": 4 - good}', {"a": "**4**", "b": "4/5", "c": "4 - good"}),
        ('{"a": "http://x#y", "b": 1,}', {"a": "http://x#y", "b": 1}),
        ('{"a": "\\(x\\) and \\alpha", "b": -1.5e3}', {"a": "\\(x\\) and \\alpha", "b": -1500}),
        ('{"a": "One.\\nUse \\d+."}', {"a": "One.\nUse \\d+."}),
        ('Sure: {"a": {"b": 2},} there.', {"a": {"b": 2}}),
    ],
)
def test_what_is_nearly_json_is_read(text: str, value: object) -> None:
    assert extract_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1}", '{"a": 1', '{"a": 1 "b": 2}', '{"a": b}', "{'a': 'it's'}", "{,}", '{"a":,}', '{"a": 1,,}', '{"a" 1}',
        '{"a": """b"""}', '{"a": "\\alpha \\nabla"}', '{"a": "\\alpha \\\\beta"}', '{"a": "\\x\\',
    ],
)  # fmt: skip
def test_what_has_no_reading_or_two_is_none(text: str) -> None:
    assert read_near_json(text, 0) is None
    with pytest.raises(ReplyError):
        extract_json(text)


@pytest.mark.parametrize("value", ["**4**", "4 - good", "4 – good", "4: good", "*4/5*", "4, good", "**4** (good)"])
def test_score_with_a_word_behind_it_is_read(value: str) -> None:
    assert parse_score(value, metric="m") == 4


@pytest.mark.parametrize("value", ["3-4", "3 - 4", "4, not 5", "4 - good, 5 - very good", "four", "4/10 - good"])
def test_score_in_two_readings_is_none(value: str) -> None:
    with pytest.raises(ReplyError):
        parse_score(value, metric="m")


@pytest.mark.parametrize(
    "reply",
    [
        {"Helpfulness": {"Score": 4, "Rationale": "r"}, "Critical-Depth": {"rating": 2, "explanation": "s"}},
        {"evaluation": {"Helpfulness": {"score": 4}, "critical depth": {"SCORE": "2"}}},
        {"result": {"scores": [{"Metric": "helpfulness", "Score": 4}, {"name": "Critical-Depth", "rating": 2}]}},
        [{"metric": "Helpfulness", "score": 4}, {"metric": "Critical-Depth", "score": 2}],
        [{"Helpfulness": {"score": 4}}, {"Critical-Depth": 2}],
        {"1. Helpfulness": 4, "2. Critical-Depth": {"score": 2}},
        {"**Helpfulness**": 4, "- Critical-Depth": 2},
        {"Helpfulness: Does it help?": 4, "Critical-Depth (is it deep?)": 2},
        {"1) Helpfulness - does it help?": {"rating": "**4**"}, "Critical-Depth – is it deep?": "2 - poor"},
    ],
)
def test_critique_is_read_under_near_names(reply: object) -> None:
    critique = parse_critique(f"Here:\n{json.dumps(reply)}", metrics=[HELPFULNESS, DEPTH])
    assert [one.score for one in critique.scores] == [4, 2]


@pytest.mark.parametrize(
    "reply",
    [
        {"Helpfulness: a": 4, "Helpfulness: b": 2},
        {"Helpfulness of it": 4},
        {"one": {"Helpfulness": 4}, "two": {"Helpfulness": 2}},
        {"Helpfulness": {"Score": 4, "SCORE": 2}},
        {"Not Helpfulness": 4},
    ],
)
def test_near_name_in_two_readings_is_none(reply: object) -> None:
    with pytest.raises(ReplyError):
        parse_critique(json.dumps(reply), metrics=[HELPFULNESS])


def test_exact_name_goes_before_a_near_one() -> None:
    reply = {"Helpfulness (again)": 1, "Helpfulness": 4}
    assert parse_critique(json.dumps(reply), metrics=[HELPFULNESS]).scores[0].score == 4


@pytest.mark.parametrize(
    "reply",
    [
        {"Metrics": ["1. Helpfulness", "Critical-Depth: Is it deep?"]},
        {"selection": {"reasoning": "r", "metrics": ["helpfulness", "**Critical Depth**"]}},
        {"metrics": [{"name": "1. Helpfulness"}, "Critical-Depth (depth)"]},
    ],
)
def test_selection_is_read_under_near_names(reply: object) -> None:
    selection = parse_metric_selection(json.dumps(reply), known=[HELPFULNESS, DEPTH])
    assert selection.metrics == (HELPFULNESS, DEPTH)


def test_new_metric_with_a_definition_is_none_of_those_known() -> None:
    new = {"name": "Helpfulness (tone)", "definition": "Is it kind?"}
    selection = parse_metric_selection(json.dumps({"metrics": [], "new_metrics": [new]}), known=[HELPFULNESS])
    assert selection.metrics[0].name == "Helpfulness (tone)"


@pytest.mark.parametrize(
    "text",
    [
        '{"New System Prompt": "Be brief."}',
        '{"result": {"analysis": "a", "new_system_prompt": "Be brief."}}',
        '[{"newSystemPrompt": "Be brief."}]',
        "{'analysis': 'a', 'new_system_prompt': 'Be brief.',}",
    ],
)
def test_rewrite_is_read_under_near_names(text: str) -> None:
    assert parse_rewrite(text) == "Be brief."


BACKSLASHES = [
    r"Write \nabla f and \frac{a}{b}.",
    r"Let \theta \in \mathbb{R}, \rho > 0, \beta \neq 0.",
    r"Match \bword\b, \d+ and [^\n]*.",
    r"Look into C:\new\temp and D:\users\bin.",
    r"Split lines at \n, columns at \t.",
    r"End lines with `\n`, or with `\r\n`.",
    r"Use \(x\) and \[y\].",
    "Two lines.\n" r"Then \nabla and \text{so}.",
]


@pytest.mark.parametrize("prompt", BACKSLASHES)
def test_backslashes_that_were_written_twice_are_delivered_byte_for_byte(prompt: str) -> None:
    assert parse_rewrite(json.dumps({"new_system_prompt": prompt})) == prompt
    assert parse_response(json.dumps({"new_response": prompt})) == prompt


@pytest.mark.parametrize("parse", [parse_rewrite, parse_response], ids=["prompt", "response"])
@pytest.mark.parametrize(
    "prompt",
    [
        *[one for one in BACKSLASHES if "\n" not in one],
        r"\nabla",
        r"\text{Be brief.}",
        r"Write a \times b.",
        r"So \neq or \ne b.",
        r"Open C:\new.",
        r"Open C:\temp.",
        r"As \rho.",
        r"In name\tvalue.",
        r"Find '\n' there.",
    ],
)
def test_backslashes_that_were_written_once_are_no_silent_control_characters(prompt: str, parse: object) -> None:
    assert callable(parse)
    name = "new_system_prompt" if parse is parse_rewrite else "new_response"
    try:
        read = parse(f'{{"{name}": "{prompt}"}}')
    except ReplyError:
        return
    assert read == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "First.\nthen second.\n\n- a\n\t- b\n\n1. one\n2. two",
        "Return:\n{\n\t\"a\": [\n\t]\n}\n```\ncode\n```",
        "Answer in lines:\nnew ones for each.\nnot more.\ne.g. so\nA:\nB",
        "Part A:\nUse words.",
    ],
)  # fmt: skip
def test_line_ends_that_are_meant_are_kept(prompt: str) -> None:
    assert parse_rewrite(json.dumps({"new_system_prompt": prompt})) == prompt


def test_near_json_leaves_whole_scores() -> None:
    text = '{"Helpfulness": {"score": 4},}'
    critique = parse_critique(text, metrics=[HELPFULNESS])
    token = ScoreToken(offset=text.index("4"), probabilities=(0, 0, 0, 0.5, 0.5))
    assert soften_critique(critique, Choice(text=text, score_tokens=(token,))).scores[0].score in (4, 4.5)
