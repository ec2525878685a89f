"""What of the settings a run's fingerprint holds: all that is not marked otherwise."""

import pytest

from drpo_graph.settings.fingerprint import LeftOut
from drpo_graph.settings.settings import RoleSettings, Settings

ALL_DECIDE = Settings(
    placeholders="format",
    placeholder_values={"name": "Ada"},
    min_quote_chars=None,
    min_quote_words=None,
    reward=("rewards:is_json",),
    reward_weight=0.5,
    ret_icl=True,
    n_proposed=4,
)
"""Every setting that can be in a fingerprint is in this one's."""


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_fingerprint_or_marked(name: str) -> None:
    marks = [mark for mark in Settings.model_fields[name].metadata if isinstance(mark, LeftOut)]
    assert (name in Settings().fingerprint_fields()) == (marks == [])
    assert (name in ALL_DECIDE.fingerprint_fields()) == (LeftOut.ALWAYS not in marks)


def test_where_a_role_s_model_is_served_is_not_in_the_fingerprint() -> None:
    fields = ALL_DECIDE.fingerprint_fields()["critic"]
    assert isinstance(fields, dict)
    assert RoleSettings.model_fields.keys() - fields.keys() == {"base_url", "api_key_env", "reasoning_effort"}
