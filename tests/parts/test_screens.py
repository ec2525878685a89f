"""What a screen may choose, and when there has to be one."""

import pytest

from drpo_graph.errors import ScreenError, SettingsError
from drpo_graph.parts.screens import ScreenChoice, ScreenRequest, check_choice, check_screen
from drpo_graph.settings.settings import Settings

REQUEST = ScreenRequest(rewrites=("a", "b", "c"), num_kept=2, queries=(), trials=(), seed=0)


@pytest.mark.parametrize("kept", [(0,), (2, 0), (1, 2)])
def test_choice_of_as_many_as_are_run_or_fewer_is_followed(kept: tuple[int, ...]) -> None:
    choice = ScreenChoice(kept, (1.0, 2.0, 3.0))
    assert check_choice(choice, REQUEST) is choice


@pytest.mark.parametrize("kept", [(), (0, 1, 2), (1, 1), (0, 3), (-1,)])
def test_choice_that_cannot_be_followed_says_what_was_expected(kept: tuple[int, ...]) -> None:
    with pytest.raises(ScreenError, match=r"kept .* of 3 rewrites: expected 1 to 2 distinct places from 0 to 2"):
        check_choice(ScreenChoice(kept), REQUEST)


def test_expected_rewards_are_one_each_or_none() -> None:
    assert check_choice(ScreenChoice((0,), None), REQUEST).expected is None
    with pytest.raises(ScreenError, match="expects 2 rewards of 3 rewrites"):
        check_choice(ScreenChoice((0,), (1.0, 2.0)), REQUEST)


def test_screen_is_wanted_only_where_more_rewrites_are_written_than_run() -> None:
    for few in (Settings(), Settings(n_actions=3, n_proposed=3)):
        check_screen(few, None)
    with pytest.raises(SettingsError, match="n_proposed=3 is more than n_actions=2, and nothing chooses"):
        check_screen(Settings(n_proposed=3), None)


def test_fewer_rewrites_written_than_run_are_refused() -> None:
    with pytest.raises(ValueError, match="n_proposed=1 is less than n_actions=2"):
        Settings(n_proposed=1)


def test_published_search_drops_no_rewrites() -> None:
    with pytest.raises(ValueError, match="contradicts compat='drpo'"):
        Settings(compat="drpo", n_proposed=6)
