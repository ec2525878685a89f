"""What a streamed response shows is what the whole one begins with, wherever the pieces are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.prompts.library import ResponseFormat, load_prompts

FLAT = load_prompts().response_format("flat")
CHAT = load_prompts().response_format("chat")

PARTS = [
    "One",
    " ",
    "\n",
    "\n\n",
    "#",
    "# ",
    "# Query",
    "# Answer",
    "# Answer:",
    "\n# Query\n",
    "```",
    "`",
    "text",
    "x",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)


@given(TEXTS, st.booleans(), st.sampled_from([FLAT, CHAT]))
def test_every_beginning_shows_a_beginning_of_the_cleaned_response(
    text: str, is_cut: bool, form: ResponseFormat
) -> None:
    cleaned = form.clean(text, is_cut=is_cut)
    for length in range(len(text) + 1):
        settled = form.settle(text[:length])
        assert cleaned.startswith(settled.text), text[:length]
        if settled.is_ended:
            assert settled.text == cleaned


@given(TEXTS)
def test_what_is_shown_only_grows(text: str) -> None:
    shown = [FLAT.settle(text[:length]).text for length in range(len(text) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


@pytest.mark.parametrize(
    ("text", "shown", "is_ended"),
    [
        ("One.\n# Que", "One.", False),
        ("One.\n# Query", "One.", False),
        ("One.\n# Query language", "One.\n# Query language", False),
        ("One.\n# Query\n", "One.", True),
        ("# Answer\nOne", "One", False),
        ("```\nOne", "", False),
        ("```python\nprint", "```python\nprint", False),
        ("One. ", "One.", False),
    ],
)
def test_partial_stop_fence_and_white_space_are_held_back(text: str, shown: str, is_ended: bool) -> None:
    assert FLAT.settle(text) == (shown, is_ended)
