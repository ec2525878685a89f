"""Placeholders of prompts that are templates: which there are, what a rewrite may do, and how they are filled."""

import json
from string import Template

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.errors import SettingsError
from drpo_graph.prompts.placeholders import (
    STYLES,
    FieldStyle,
    TemplateSyntaxError,
    count_placeholders,
    describe_changes,
    fill,
    find_style,
    mark,
)

PARENTS: dict[FieldStyle, str] = {
    "format": "Help {user} of {company}; {user} is new.",
    "mustache": "Help {{user}} of {{ company }}; {{user}} is new.",
    "dollar": "Help $user of ${company}; $user is new.",
}
VALUES = {"user": "{company} $company {{company}}", "company": "Acme"}


@pytest.mark.parametrize("style", STYLES)
def test_placeholders_are_counted_by_name(style: FieldStyle) -> None:
    assert count_placeholders(PARENTS[style], style) == {"user": 2, "company": 1}


@pytest.mark.parametrize("style", STYLES)
def test_value_that_looks_like_a_placeholder_stays_a_value(style: FieldStyle) -> None:
    assert fill(PARENTS[style], style, VALUES) == f"Help {VALUES['user']} of Acme; {VALUES['user']} is new."


@given(value=st.text(), style=st.sampled_from(STYLES))
def test_any_value_is_filled_in_as_it_is(value: str, style: FieldStyle) -> None:
    assert fill(f"a {mark('x', style)} b", style, {"x": value}) == f"a {value} b"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("format", "{{'a': 1}} and {x}"),
        ("dollar", "$$5 and $x and ${x}"),
    ],
)
def test_literal_signs_come_out_as_the_standard_library_has_them(style: FieldStyle, text: str) -> None:
    expected = text.format(x="1") if style == "format" else Template(text).substitute(x="1")
    assert fill(text, style, {"x": "1"}) == expected


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (("user",), "missing: {company}"),
        (("user", "firm"), "missing: {company}; not in the original: {firm}"),
        (("user", "company", "city"), "not in the original: {city}"),
        (("user", "company", "company"), "repeated: {company}"),
        ((), "missing: {user}, {company}"),
    ],
)
def test_rewrite_that_changes_placeholders_is_told_which(style: FieldStyle, kept: tuple[str, ...], told: str) -> None:
    rewrite = "Serve " + " and ".join(mark(name, style) for name in kept)
    problem = describe_changes(rewrite, PARENTS[style], style)
    assert problem is not None
    for name in ("user", "company", "firm", "city"):
        told = told.replace("{" + name + "}", mark(name, style))
    assert problem.endswith(f"({told})")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_placeholder_that_was_repeated_may_stand_any_number_of_times(style: FieldStyle, number: int) -> None:
    rewrite = mark("company", style) + " " + " ".join([mark("user", style)] * number)
    assert describe_changes(rewrite, PARENTS[style], style) is None


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("format", 'Reply as {"a": 1}, {user}, {user}, {company}'),
        ("format", "{user} {user} {company} {"),
        ("mustache", "{{user}} {{user}} {{company}} {{#each}}"),
        ("dollar", "$user $user $company for $5"),
    ],
)
def test_rewrite_that_the_app_could_not_fill_is_refused(style: FieldStyle, text: str) -> None:
    problem = describe_changes(text, PARENTS[style], style)
    assert problem is not None
    assert "cannot be read" in problem


@pytest.mark.parametrize("text", ["{0}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>4}", "{a.__class__}"])
def test_only_plain_names_are_placeholders(text: str) -> None:
    with pytest.raises(TemplateSyntaxError):
        count_placeholders(text, "format")


def test_braces_and_dollars_mean_nothing_unless_the_user_says_so() -> None:
    prompt = json.dumps({"a": "{user} $5 {{x}}"})
    assert find_style(prompt, "none") is None


@pytest.mark.parametrize("style", STYLES)
def test_auto_finds_the_style(style: FieldStyle) -> None:
    assert find_style(f"Help {mark('user', style)}.", "auto") == style


def test_auto_leaves_a_prompt_without_placeholders_alone() -> None:
    assert find_style('Reply as {"a": 1}; it costs $5.', "auto") is None


def test_auto_does_not_guess_between_styles() -> None:
    for prompt in ("{user} pays $price", "{user} pays ${price}"):
        with pytest.raises(SettingsError, match="format or dollar"):
            find_style(prompt, "auto")


@pytest.mark.parametrize("style", STYLES)
def test_style_that_the_prompt_does_not_have_is_an_error(style: FieldStyle) -> None:
    with pytest.raises(SettingsError, match="has none like"):
        find_style("You are kind.", style)


def test_prompt_with_single_braces_is_no_format_template() -> None:
    with pytest.raises(SettingsError, match="literal braces are doubled"):
        find_style('Reply to {user} as {"a": 1}.', "format")
