import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_graph.safety.terminal import inert, inert_block, inert_json
from tests.support.hostile import HOSTILE, is_inert


def test_escapes_controls_and_bidi_marks_go_and_the_words_stay() -> None:
    shown = inert(HOSTILE, max_chars=400)
    assert is_inert(shown)
    assert "\n" not in shown
    for word in ("red", "link", "[bold]markup[/bold]", "evil", "tail", ":smile:"):
        assert word in shown
    for part in ("owned", "[31m", "http://evil\x1b", "2J"):
        assert part not in shown


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\tb", "a\u2028b", "a\x85b", "a \n b"])
def test_line_breaks_become_blanks(text: str) -> None:
    assert inert(text, max_chars=10).split() == ["a", "b"]
    assert inert(text, max_chars=10).isprintable()


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert inert("abcdef", max_chars=4) == "abc…"
    assert inert("abcd", max_chars=4) == "abcd"


def test_unfinished_escape_hides_no_text() -> None:
    assert inert("\x1b]0;the rest stays", max_chars=40).endswith("the rest stays")


def test_letters_of_all_scripts_stay() -> None:
    text = "žluťoučký 你好 العربية हिन्दी"
    assert inert(text, max_chars=100) == text


def test_block_keeps_lines_and_indentation() -> None:
    assert inert_block("a\n  - b\x1b[2J\r\n\tc", max_chars=100) == "a\n  - b\n    c"


@given(st.text(alphabet=st.characters(), max_size=60), st.integers(min_value=1, max_value=50))
def test_any_text_is_one_short_inert_line(text: str, max_chars: int) -> None:
    shown = inert(text, max_chars=max_chars)
    assert len(shown) <= max_chars
    assert is_inert(shown)
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize("code", [0x34F, 0x115F, 0x17B4, 0x180B, 0x3164, 0xFE00, 0xFFA0, 0xE0101, 0xE01EF])
def test_signs_that_are_drawn_as_nothing_go_or_are_escaped(code: int) -> None:
    assert inert(f"a{chr(code)}b", max_chars=9) == "ab"
    written = inert_json(json.dumps(f"a{chr(code)}b", ensure_ascii=False))
    assert written.isascii()
    assert json.loads(written) == f"a{chr(code)}b"
