"""Keys are hidden in messages, blotted out in replies, and refused in settings, whose values are stored."""

import pytest
from pydantic import JsonValue

from drpo_graph.capabilities import Address
from drpo_graph.errors import SettingsError
from drpo_graph.redaction import find_secret_field, mask_all, redact
from drpo_graph.settings import build_settings

KEY = "sk-canary/4f1d+9b"


def test_a_key_that_an_address_holds_is_hidden_wherever_it_stands() -> None:
    Address("http://host/v1", "m", KEY)
    assert redact(f"Incorrect key {KEY!r} provided") == "Incorrect key '***' provided"
    assert redact("?key=sk-canary%2F4f1d%2B9b&x=1") == "?key=***&x=1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://me:pass@proxy:3128/ failed", "proxy http://***@proxy:3128/ failed"),
        ("header Authorization: Bearer abcdefgh12345 was refused", "header Authorization: Bearer *** was refused"),
        ("http://host/v1 and me@example.org", "http://host/v1 and me@example.org"),
        ("Bearer of news", "Bearer of news"),
        ("https://token@host/ failed", "https://***@host/ failed"),
        ("Checkpoint postgresql://me@host/runs: gone", "Checkpoint postgresql://me@host/runs: gone"),
        ("Checkpoint postgresql://me:pass@host/runs: gone", "Checkpoint postgresql://***@host/runs: gone"),
        ("Checkpoint postgres://me:pass@host/runs: gone", "Checkpoint postgres://***@host/runs: gone"),
    ],
)
def test_users_in_urls_and_bearer_tokens_are_hidden_whoever_they_belong_to(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_of_two_keys_that_begin_alike_nothing_is_left() -> None:
    for key in ("key-of-many", "key-of-many-words"):
        Address("http://host/v1", "m", key)
    assert redact("key-of-many-words, key-of-many") == "***, ***"


def test_an_answer_with_a_key_in_it_keeps_its_length() -> None:
    answer: JsonValue = {"a": [f"x {KEY} y", 1, None], KEY: {"b": KEY}}
    masked = "*" * len(KEY)
    assert mask_all(answer, secret=KEY) == {"a": [f"x {masked} y", 1, None], masked: {"b": masked}}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"api_key": "x"}, "api_key"),
        ({"extra_headers": {"X-Api-Key": "x"}}, "extra_headers.X-Api-Key"),
        ({"headers": [{"name": "Authorization", "value": "Bearer abcdef"}]}, "headers[0].value"),
        ({"proxy": "http://me:pass@proxy"}, "proxy"),
        ({"hf_token": "x"}, "hf_token"),
        ({"password": "x"}, "password"),
        ({"stop_token_ids": [1], "skip_special_tokens": True, "min_tokens": 3, "cache_salt": "x"}, None),
        ({"guided_regex": "[a-z]+", "token": 3, "note": "see http://host/a@b"}, None),
    ],
)
def test_a_field_that_looks_like_a_key_is_found(value: JsonValue, place: str | None) -> None:
    assert find_secret_field(value) == place


@pytest.mark.parametrize(
    "values",
    [
        {"critic": {"extra_body": {"extra_headers": {"Authorization": KEY}}}},
        {"critic": {"extra_body": {"api_key": KEY}}},
        {"critic": {"api_key_env": KEY}},
        {"critic": {"api_key": KEY}},
        {"critic": {"base_url": {"url": f"https://me:{KEY}@host/v1"}}},
    ],
)
def test_settings_refuse_a_key_and_do_not_repeat_it(values: dict[str, object]) -> None:
    Address("http://host/v1", "m", KEY)
    with pytest.raises(SettingsError) as caught:
        build_settings(values)
    assert "critic." in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__
