"""Who may call a served graph chooses how it searches, and nothing that reads the host's files or environment."""

from collections.abc import Iterator
from typing import Any

import pytest
from langgraph.graph.state import CompiledStateGraph

from drpo_graph import build_graph
from drpo_graph.errors import SettingsError
from drpo_graph.icl import build_icl_graph
from drpo_graph.records import ROLES
from drpo_graph.search.hosting import Host
from drpo_graph.settings.caller_settings import CALLER_SETTINGS, CallerContext, apply_callers
from drpo_graph.settings.settings import RoleSettings, Settings
from tests.conformance.graphs import QUERIES, make_settings, serve_models

OPEN_ROLE_FIELDS = {"temperature", "top_p", "reasoning_effort"}
CLOSED = {
    "templates": "/etc",
    "metrics_cache": "/etc/passwd",
    "icl_examples": "/etc/passwd",
    "embeddings": "openai:e",
    "embeddings_cache": "/etc/passwd",
    "embeddings_base_url": "http://evil.invalid/v1",
    "embeddings_api_key_env": "DATABASE_PASSWORD",
    "reward": "json:dumps",
    "reward_weight": 0.5,
    "ret_icl": True,
    "k": 3,
    "prices": {},
    "placeholders": "format",
    "placeholder_values": {"name": "x"},
    "min_quote_chars": 30,
    "min_quote_words": 5,
    "n_proposed": 4,
    "max_concurrency": 10_000,
    "requests_per_second": 1e6,
    "probe": False,
    "routing": "round_robin",
    "timeout_s": 1e9,
    "max_retries": 10_000,
    "retry_wait_s": 1e9,
    "max_outage_s": 1e9,
    "max_failure_share": 1.0,
    "max_reply_attempts": 10_000,
    "max_reply_mb": 1e9,
    **{role: {"model": "openai:m"} for role in ROLES},
}
"""What only the builder sets, each with a value that a caller might try."""


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve_models() as url:
        yield url


def test_every_setting_is_open_or_closed() -> None:
    """A new setting is refused until it is listed, and this test says that somebody has to think about it."""
    flat = {name for name in CALLER_SETTINGS if name in Settings.model_fields}
    assert flat | set(CLOSED) >= set(Settings.model_fields)
    assert not flat & set(CLOSED)
    assert {name for name in CALLER_SETTINGS if name not in flat} == {
        f"{role}_{field}" for role in ROLES for field in OPEN_ROLE_FIELDS
    }


CLOSED_ROLE_FIELDS = [f"base_{name}" for name in RoleSettings.model_fields if name not in OPEN_ROLE_FIELDS]


@pytest.mark.parametrize("name", [*CLOSED, *CLOSED_ROLE_FIELDS])
async def test_a_caller_cannot_choose(name: str, base_url: str) -> None:
    graph: Any = build_graph(make_settings(base_url))
    with pytest.raises(SettingsError, match=rf"^{name}: for whoever builds the graph"):
        await graph.ainvoke({"queries": QUERIES}, context={name: CLOSED.get(name, "x")})


@pytest.mark.parametrize("name", ["model", "base_url", "api_key_env", "settings", "base_model_name", "nonsense"])
async def test_no_other_name_leads_past_the_list(name: str, base_url: str) -> None:
    graph: Any = build_graph(make_settings(base_url))
    with pytest.raises(SettingsError, match=rf"^{name}: "):
        await graph.ainvoke({"queries": QUERIES}, context={name: "DATABASE_PASSWORD"})


@pytest.mark.parametrize("cap", ["max_calls", "max_tokens", "max_cost", "max_time"])
def test_a_budget_can_only_be_made_smaller(cap: str) -> None:
    settings = Settings(**{cap: 100})
    assert getattr(apply_callers(settings, {cap: 50}), cap) == 50
    for more in (101, None):
        with pytest.raises(SettingsError, match=f"^{cap}: the graph allows 100 at most"):
            apply_callers(settings, {cap: more})
    assert getattr(apply_callers(Settings(), {cap: 50}), cap) == 50


async def test_what_a_caller_chooses_holds(base_url: str) -> None:
    graph: Any = build_graph(make_settings(base_url))
    output = await graph.ainvoke({"queries": QUERIES}, context={"depth": 3, "optimizer_temperature": 0.1})
    assert output["result"]["depth"] == 2
    with pytest.raises(SettingsError, match="depth"):
        await graph.ainvoke({"queries": QUERIES}, context={"depth": "many"})


@pytest.mark.parametrize("build", [build_graph, build_icl_graph])
def test_the_schema_shows_what_may_be_chosen(build: Any) -> None:
    graph: CompiledStateGraph[Any, Any, Any, Any] = build()
    schema = graph.get_context_jsonschema()
    assert schema is not None
    assert set(schema["properties"]) == set(CALLER_SETTINGS)
    assert {"type": "integer"} in schema["properties"]["depth"]["anyOf"]


async def test_contexts_of_callers_are_bounded(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[Host] = []
    post_init = Host.add_step

    def add_step(self: Host, *given: Any, **how: Any) -> None:
        hosts.append(self)
        post_init(self, *given, **how)

    monkeypatch.setattr(Host, "add_step", add_step)
    graph: Any = build_graph(make_settings(base_url))
    for seed in range(40):
        await graph.ainvoke({"queries": QUERIES[:1]}, context=CallerContext(seed=seed))
    assert len(hosts[0]._contexts.get()) <= 17
