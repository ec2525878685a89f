"""A text that comes in pieces is as inert as one that comes whole, wherever it is cut."""

from hypothesis import example, given
from hypothesis import strategies as st

from drpo_graph.safety.terminal import InertStream

PARTS = [
    "a",
    " ",
    "\n",
    "\r",
    "\t",
    "\x1b",
    "\x1b[31m",
    "\x1b]0;t\x07",
    "\x1bP",
    "\x1b\\",
    "\x9b",
    "[",
    "2J",
    "\u202e",
    "\ud800",
    "]0;",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def show(pieces: list[str]) -> str:
    stream = InertStream()
    return "".join([*map(stream.feed, pieces), stream.end()])


@given(TEXTS)
def test_no_cut_lets_anything_through_that_a_terminal_would_obey(text: str) -> None:
    for place in range(len(text) + 1):
        shown = show([text[:place], text[place:]])
        assert all(char in "\n\N{REPLACEMENT CHARACTER}" or char.isprintable() for char in shown), repr(shown)


@given(TEXTS)
@example("\r\x1b[31m\n")
@example("\x1b]0;\r\x1b\\a")
def test_cutting_after_every_character_shows_the_same(text: str) -> None:
    assert show(list(text)) == show([text])


def test_escape_sequence_that_never_ends_does_not_hold_the_rest_back_for_ever() -> None:
    stream = InertStream()
    assert stream.feed("a\x1b]0;title") == "a"
    assert "x" * 100 in stream.feed("x" * 10_000)
