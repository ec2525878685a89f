"""Runs ask as their servers can: what a probe found decides the first request of each kind."""

from pathlib import Path
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from drpo_graph.calls.client_setup import make_learned
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ModelCallError
from tests.support.fake_server import FakeServer, LogEntry, Reply, ServerOptions
from tests.support.roles import QUESTION, SCORE_SCHEMA, open_desk, parse_answer

SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def say_four(body: dict[str, object]) -> Reply:
    return Reply(['{"score": 4}'], tool_arguments=['{"score": 4}'])


async def ask_critic(model: RoleModel, *, num_samples: int = 1) -> list[int | None]:
    samples = await model.ask(QUESTION, parse=parse_answer, schema=SCORE_SCHEMA, num_samples=num_samples)
    return [sample.value for sample in samples]


def bodies(server: FakeServer) -> list[dict[str, Any]]:
    return [entry["body"] for entry in server.log if entry["event"] == "start"]


def paths(entries: list[LogEntry]) -> list[str]:
    return [entry["path"] for entry in entries]


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ({}, {"response_format"}),
        ({"reject_response_format": True}, {"tools"}),
        ({"ignores_schema": True}, {"tools"}),
        ({"ignores_schema": True, "reject_tools": True}, {"response_format"}),
        ({"reject_response_format": True, "reject_tools": True}, set()),
    ],
)
async def test_first_question_takes_the_best_rung_that_works(options: dict[str, Any], has: set[str]) -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, **options)) as server:
        desk = await open_desk(server.base_url, probe=True)
        assert await ask_critic(desk.models.critic) == [4]
        (body,) = bodies(server)
        assert {name for name in ("response_format", "tools") if name in body} == has
        if "reject_tools" in options and "ignores_schema" in options:
            assert body["response_format"]["type"] == "json_object"


async def test_server_without_n_is_asked_sample_by_sample() -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, ignore_n=True)) as server:
        desk = await open_desk(server.base_url, probe=True)
        assert await ask_critic(desk.models.optimizer, num_samples=3) == [4, 4, 4]
        assert [body.get("n") for body in bodies(server)] == [1, 1, 1]


@pytest.mark.parametrize("options", [{"reject_system_role": True}, {"drops_system": True}])
async def test_system_prompt_goes_where_the_model_reads_it(options: dict[str, Any]) -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, **options)) as server:
        desk = await open_desk(server.base_url, probe=True)
        await desk.models.base.respond(SYSTEM)  # type: ignore[arg-type]
        (body,) = bodies(server)
        assert [message["role"] for message in body["messages"]] == ["user"]
        assert "Be kind." in body["messages"][0]["content"]


async def test_model_without_chat_template_gets_the_flat_prompt() -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, reject_chat=True)) as server:
        desk = await open_desk(server.base_url, probe=True)
        base = desk.models.base
        sample = await base.respond(base.response_format.render(system_prompt="Be kind.", query="Why?"))
        assert sample.value == '{"score": 4}'
        assert await ask_critic(desk.models.critic) == [4]
        assert set(paths(server.log)) == {"/v1/completions"}
        prompt = bodies(server)[0]["prompt"]
        assert "Be kind." in prompt
        assert prompt.index("\n# Query\n") < prompt.index("Why?") < prompt.index("\n# Answer\n")
        assert bodies(server)[0]["stop"]


@pytest.mark.parametrize(
    ("role", "path"),
    [({"endpoint": "chat"}, "/v1/chat/completions"), ({"endpoint": "completions"}, "/v1/completions")],
)
async def test_settings_win_over_the_probe(role: dict[str, Any], path: str) -> None:
    async with FakeServer(say_four, ServerOptions()) as server:
        desk = await open_desk(server.base_url, probe=True, role=role)
        await desk.models.base.respond([{"role": "user", "content": "Hi"}])
        assert paths(server.log)[0] == path


async def test_endpoint_is_probed_once_for_all_roles_and_runs_that_follow() -> None:
    async with FakeServer(say_four, ServerOptions(models=["m"], server="vllm", max_model_len=4096)) as server:
        await open_desk(server.base_url, probe=True)
        num_probes = len(server.probes)
        assert 5 <= num_probes <= 20
        await open_desk(server.base_url, probe=True, run_id="another")
        assert len(server.probes) == num_probes
        await open_desk(server.base_url, probe=False, run_id="without")
        assert len(server.probes) == num_probes


async def test_resumed_run_asks_as_it_did_whatever_the_server_says_now(cache: Path) -> None:
    store = InMemoryStore()
    async with FakeServer(say_four, ServerOptions(reject_chat=True)) as before:
        desk = await open_desk(before.base_url, probe=True, store=store)
        assert desk.models.base.channel.client.endpoint == "completions"
    async with FakeServer(say_four) as after:
        desk = await open_desk(after.base_url, probe=True, store=store)
        assert desk.models.base.channel.client.endpoint == "completions"
        assert not after.probes


@pytest.mark.parametrize("asks_first", [True, False])
async def test_whether_a_run_asks_is_settled_when_it_starts(asks_first: bool) -> None:
    store, expected = InMemoryStore(), "completions" if asks_first else "chat"
    async with FakeServer(say_four, ServerOptions(reject_chat=True)) as server:
        for probe in (asks_first, not asks_first):
            desk = await open_desk(server.base_url, probe=probe, store=store)
            assert desk.models.base.channel.client.endpoint == expected


async def test_several_servers_do_what_all_of_them_can_and_one_may_be_down() -> None:
    async with (
        FakeServer(say_four, ServerOptions(server="vllm", max_model_len=8192)) as full,
        FakeServer(say_four, ServerOptions(server="vllm", max_model_len=2048, reject_tools=True)) as poor,
    ):
        urls = [full.base_url, poor.base_url, "http://127.0.0.1:9/v1"]
        desk = await open_desk("", role={"base_url": urls}, probe=True)
        window = desk.models.critic.channel.client.window
        assert window is not None
        assert window.max_tokens == 2048


@pytest.mark.parametrize(
    ("options", "role", "words"),
    [
        (ServerOptions(models=["other"]), {}, "does not serve it"),
        (ServerOptions(api_key="right"), {}, "refused the key"),
    ],
)
async def test_what_no_run_could_work_with_is_said_at_once(
    options: ServerOptions, role: dict[str, Any], words: str
) -> None:
    async with FakeServer(say_four, options) as server:
        with pytest.raises(ModelCallError, match=words):
            await open_desk(server.base_url, probe=True, role=role)
        assert not server.log


@pytest.mark.parametrize("tokenizes", ["vllm", "llama.cpp"])
async def test_prompt_that_overflows_is_not_sent(tokenizes: Any) -> None:
    options = ServerOptions(server=tokenizes, max_model_len=200, tokenizes=tokenizes, log_bodies=True)
    async with FakeServer(say_four, options) as server:
        desk = await open_desk(server.base_url, probe=True, role={"max_tokens": 150})
        sample = await desk.models.base.respond([{"role": "user", "content": "word " * 500}])
        assert sample.failure is not None
        assert sample.failure.kind == "overflow"
        assert "the prompt has" in sample.failure.detail
        assert "context 200" in sample.failure.detail
        assert not server.log
        sample = await desk.models.base.respond([{"role": "user", "content": "word " * 120}])
        assert sample.value is not None
        (body,) = bodies(server)
        assert body.get("max_tokens", body.get("max_completion_tokens")) < 100


@pytest.mark.parametrize("rung", ["two", None, [2]])
def test_damaged_record_of_what_was_learnt_is_learnt_anew(rung: Any) -> None:
    assert make_learned({"rung": 2, "merges_system": True, "ignores_n": False}, None).rung == 2
    assert make_learned({"rung": rung, "merges_system": True, "ignores_n": False}, None) == make_learned(None, None)
