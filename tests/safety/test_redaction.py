"""Keys are hidden in messages, blotted out in replies, and refused in settings, whose values are stored."""

import pytest
from pydantic import JsonValue

from drpo_graph.errors import SettingsError
from drpo_graph.models.capabilities import Address
from drpo_graph.safety.redaction import find_secret_field, mask_all, redact
from drpo_graph.settings.layers import build_settings

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
        ("Bearer of news, the bearer certificate", "Bearer of news, the bearer certificate"),
        ("proxy http://me:p@ss-word@proxy:1/ failed", "proxy http://***@proxy:1/ failed"),
        ("proxy http://me:pa/ss?w#d@proxy/ failed", "proxy http://***@proxy/ failed"),
        ("http://a:b@c/x,http://d:e@f/", "http://***@c/x,http://***@f/"),
        ("postgresql://me:p@ss/w@host/runs", "postgresql://***@host/runs"),
        ("authorization: bearer abcdefgh123", "authorization: bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic ***'}"),
        ("https://h/v1?api_key=abc&n=1&key=d", "https://h/v1?api_key=***&n=1&key=***"),
        ("x-api-key: abcdef123456", "x-api-key: ***"),
        ('{"openaiApiKey": "abcdef123456", "n": 1}', '{"openaiApiKey": "***", "n": 1}'),
        ("Incorrect key: sk-proj-abcdefghijklmnop.", "Incorrect key: ***."),
        ("hf_abcdefghij1234567890 and AIzaSyabcdefghij1234567890", "*** and ***"),
        ("critic.api_key: Extra inputs; max_tokens: 4096", "critic.api_key: Extra inputs; max_tokens: 4096"),
        ("http://127.0.0.1:8000/v1?model=a&n=12345678x", "http://127.0.0.1:8000/v1?model=a&n=12345678x"),
        ("risk-adjusted-measures-of-value", "risk-adjusted-measures-of-value"),
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
        ({"aws_secret_access_key": "x"}, "aws_secret_access_key"),
        ({"extra_headers": {"Ocp-Apim-Subscription-Key": "x"}}, "extra_headers.Ocp-Apim-Subscription-Key"),
        ({"extra_headers": {"Cookie": "s=x"}}, "extra_headers.Cookie"),
        ({"openaiApiKey": "x"}, "openaiApiKey"),
        ({"APIKeys": ["x"]}, "APIKeys"),
        ({"api_key": ["x"]}, "api_key"),
        ({"private_key": "x"}, "private_key"),
        ({"auth": "x"}, "auth"),
        ({"PGPASSWORD": "x"}, "PGPASSWORD"),
        ({"sessionTokens": ["x"]}, "sessionTokens"),
        ({"x": "sk-proj-abcdefghijklmnop"}, "x"),
        ({"x": ["a gsk_abcdefghij1234567890"]}, "x[0]"),
        ({"x": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3"}, "x"),
        ({"proxy": "http://me:pa/ss@proxy"}, "proxy"),
        ({"prompt_cache_key": "x", "eos_token": "</s>", "stop_tokens": ["x"], "author": "x"}, None),
        ({"guided_json": {"properties": {"token": {"type": "string"}}, "required": ["password"]}}, None),
        ({"stop_token_ids": [1], "skip_special_tokens": True, "min_tokens": 3, "cache_salt": "x"}, None),
        ({"guided_regex": "[a-z]+", "token": 3, "note": "see http://host/a@b"}, None),
    ],
)
def test_a_field_that_looks_like_a_key_is_found(value: JsonValue, place: str | None) -> None:
    assert find_secret_field(value) == place


def test_a_value_with_a_key_that_is_known_or_in_the_environment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    Address("http://host/v1", "m", "key-that-is-known")
    monkeypatch.setenv("SOME_API_KEY", "only in the environment")
    monkeypatch.setenv("PWD", "a folder's name")
    assert find_secret_field({"a": ["x key-that-is-known y"]}) == "a[0]"
    assert find_secret_field({"x": {"a key-that-is-known": 1}}) is not None
    assert find_secret_field({"a": "it is only in the environment"}) == "a"
    assert find_secret_field({"a": "a folder's name"}) is None


@pytest.mark.parametrize("text", ["://" * 30_000, "a" * 100_000, "a:" * 50_000, "?a=" * 30_000, "bearer " * 15_000])
def test_a_long_text_without_a_key_takes_no_longer_than_its_length(text: str) -> None:
    assert redact(text) == text


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
