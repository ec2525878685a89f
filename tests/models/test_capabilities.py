"""The cache of capabilities: what it gives back, when it gives nothing, and that it is private."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from drpo_graph.models.capabilities import Address, Capabilities, CapabilityCache, default_cache_folder

KEY = "sk-canary-8c1f0a77b2d94e"
WHOLE = Capabilities(
    has_chat=True,
    has_completions=True,
    has_system_role=True,
    has_n=False,
    has_json_schema=True,
    has_tools=False,
    has_json_mode=True,
    has_logprobs=True,
    has_seed=True,
    has_stop=True,
    max_context=8192,
)
DAY_S = 24 * 3600


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> CapabilityCache:
    return CapabilityCache(tmp_path / "drpo_graph" / "capabilities", clock=clock)


def file_of(cache: CapabilityCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_what_was_put_is_given_back_for_its_endpoint_and_model_alone(cache: CapabilityCache) -> None:
    cache.put("http://a/v1", "m", capabilities=WHOLE)
    assert cache.get("http://a/v1", "m") == WHOLE
    assert cache.get("http://a/v1", "other") is None
    assert cache.get("http://b/v1", "m") is None
    other = WHOLE.model_copy(update={"has_n": True})
    cache.put("http://a/v1", "other", capabilities=other)
    assert (cache.get("http://a/v1", "m"), cache.get("http://a/v1", "other")) == (WHOLE, other)


@pytest.mark.parametrize(
    ("capabilities", "lifetime_s"),
    [
        (WHOLE, DAY_S),
        (WHOLE.model_copy(update={"has_tools": None}), 600),
        (Capabilities(), 600),
        # What no request decides may stay unknown.
        (WHOLE.model_copy(update={"max_context": None, "is_reproducible": None}), DAY_S),
    ],
)
def test_entry_lasts_a_day_and_an_incomplete_one_ten_minutes(
    cache: CapabilityCache, clock: Clock, capabilities: Capabilities, lifetime_s: float
) -> None:
    cache.put("i", "m", capabilities=capabilities)
    clock.now += lifetime_s - 1
    assert cache.get("i", "m") == capabilities
    clock.now += 1
    assert cache.get("i", "m") is None
    # Written by a clock that was ahead.
    clock.now -= lifetime_s + 1
    assert cache.get("i", "m") is None


def other_format(text: str) -> str:
    entry = json.loads(text)
    entry["capabilities"]["format"] = 0
    return json.dumps(entry)


def other_fields(text: str) -> str:
    entry = json.loads(text)
    entry["capabilities"]["has_telepathy"] = True
    return json.dumps(entry)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\x00\ufffd",
        lambda text: "[]",
        lambda text: text.replace('"m"', '"other"'),
        other_format,
        other_fields,
    ],
)
def test_damaged_or_foreign_file_is_none_and_is_written_over(
    cache: CapabilityCache, damage: Callable[[str], str]
) -> None:
    cache.put("i", "m", capabilities=WHOLE)
    path = file_of(cache)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert cache.get("i", "m") is None
    cache.put("i", "m", capabilities=WHOLE)
    assert cache.get("i", "m") == WHOLE


def test_file_is_its_owner_s_alone_and_replaced_whole(cache: CapabilityCache) -> None:
    for has_n in (True, False):
        cache.put("i", "m", capabilities=WHOLE.model_copy(update={"has_n": has_n}))
        path = file_of(cache)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text())["capabilities"]["has_n"] is has_n
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = CapabilityCache(tmp_path / "file" / "below")
    cache.put("i", "m", capabilities=WHOLE)
    assert cache.get("i", "m") is None


def test_folder_is_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, root in (
        (str(tmp_path / "cache"), tmp_path / "cache"),
        ("", tmp_path / "home" / ".cache"),
        ("relative", tmp_path / "home" / ".cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_folder() == CapabilityCache().folder == root / "drpo_graph" / "capabilities"


def test_address_hides_its_key_and_knows_its_root() -> None:
    address = Address(f"http://me:{KEY}@host:8000/v1/?key={KEY}", "m", KEY)
    assert KEY not in Address("http://host:8000/v1", "m", KEY).__repr__()
    assert address.place == "http://host:8000/v1/"
    assert [Address(url, "m").root for url in ("http://h/v1", "http://h/v1/", "http://h/api", "http://h:1")] == [
        "http://h",
        "http://h",
        "http://h/api",
        "http://h:1",
    ]
    assert (address.secret, Address("http://h", "m").secret) == (KEY, "")


@pytest.mark.parametrize(
    ("known", "rung"),
    [
        ({}, "json_schema"),
        ({"has_json_schema": True}, "json_schema"),
        ({"has_json_schema": False}, "tool"),
        ({"has_json_schema": False, "has_tools": False}, "json"),
        ({"has_json_schema": False, "has_tools": False, "has_json_mode": False}, "text"),
        ({"has_tools": False, "has_json_mode": False}, "json_schema"),
    ],
)
def test_first_rung_is_the_best_that_is_not_known_to_be_missing(known: dict[str, bool], rung: str) -> None:
    assert Capabilities.model_validate(known).first_rung == rung
