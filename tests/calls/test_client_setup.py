"""Runs ask as their servers can: what a probe found decides the first request of each kind."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langgraph.store.memory import InMemoryStore

from drpo_graph.calls.client_setup import make_learned
from drpo_graph.calls.roles import RoleModel
from drpo_graph.errors import ModelCallError
from drpo_graph.records import ROLES
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
        ({"reject_response_format": True, "reject_tools": True}, set()),
    ],
)
async def test_questions_come_down_to_the_best_rung_that_works(options: dict[str, Any], has: set[str]) -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, **options)) as server:
        desk = await open_desk(server.base_url, probe=True)
        assert await ask_critic(desk.models.critic) == [4]
        body = bodies(server)[-1]
        assert {name for name in ("response_format", "tools") if name in body} == has
        # What is refused is learnt from the call itself, and not tried again.
        num_before = len(bodies(server))
        assert await ask_critic(desk.models.critic, num_samples=2) == [4, 4]
        assert len(bodies(server)) == num_before + 1


async def test_server_without_n_is_asked_sample_by_sample() -> None:
    async with FakeServer(say_four, ServerOptions(log_bodies=True, ignore_n=True)) as server:
        desk = await open_desk(server.base_url, probe=True)
        assert await ask_critic(desk.models.optimizer, num_samples=3) == [4, 4, 4]
        assert [body.get("n") for body in bodies(server)] == [3, 1, 1]
        assert await ask_critic(desk.models.critic, num_samples=2) == [4, 4]
        assert [body.get("n") for body in bodies(server)[3:]] == [1, 1]


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
        assert (num_probes, len(server.gets)) == (1, 1)
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


async def test_four_models_cost_a_look_at_each_server_and_one_question_in_one_round() -> None:
    names = {"base": "openai:a", "metrics": "openai:b", "critic": "openai:c", "optimizer": "openai:d"}
    async with FakeServer(say_four, ServerOptions(models=[*"abcd"], server="vllm", max_model_len=4096)) as server:
        fields = {role: {"model": model, "base_url": server.base_url} for role, model in names.items()}
        desk = await open_desk("", probe=True, **fields)
        assert (len(server.probes), server.gets) == (1, ["/v1/models"])
        assert desk.models.critic.channel.client.window is not None
        assert await ask_critic(desk.models.critic) == [4]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(say_four, ServerOptions())) for _ in names]
        fields = {
            role: {"model": model, "base_url": server.base_url}
            for (role, model), server in zip(names.items(), servers, strict=True)
        }
        await open_desk("", probe=True, **fields)
        assert [(len(server.probes), len(server.gets)) for server in servers] == [(1, 1), (0, 0), (0, 1), (0, 1)]


async def test_nothing_waits_for_anything_else_before_the_first_call() -> None:
    arrived, answered = asyncio.Event(), []

    class Gathering(FakeServer):
        async def _describe(self, request: web.Request) -> web.Response:
            await asyncio.wait_for(arrived.wait(), 20)
            answered.append(request.path)
            return await super()._describe(request)

        async def _handle(self, request: web.Request) -> web.StreamResponse:
            arrived.set()
            return await super()._handle(request)

    async with Gathering(say_four, ServerOptions(server="vllm", max_model_len=4096)) as server:
        await open_desk(server.base_url, probe=True)
        assert answered == ["/v1/models"]


async def test_remembered_look_that_did_not_ask_for_chats_does_not_do_for_the_base_model() -> None:
    async with FakeServer(say_four, ServerOptions(reject_chat=True)) as server:
        fields = {role: {"model": f"openai:{role}", "base_url": server.base_url} for role in ROLES}
        await open_desk("", probe=True, run_id="one", **fields)
        assert len(server.probes) == 1
        desk = await open_desk(server.base_url, probe=True, run_id="two", role={"model": "openai:critic"})
        assert desk.models.base.channel.client.endpoint == "completions"
        assert len(server.probes) == 2


async def test_other_roles_learn_from_a_call_that_a_model_takes_no_chat() -> None:
    store = InMemoryStore()
    async with FakeServer(say_four, ServerOptions(reject_chat=True)) as server:
        desk = await open_desk(server.base_url, probe=False, store=store)
        assert await ask_critic(desk.models.critic) == [4]
        assert await ask_critic(desk.models.optimizer, num_samples=2) == [4, 4]
        assert paths(server.finished) == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
        again = await open_desk(server.base_url, probe=False, store=store)
        assert await ask_critic(again.models.critic) == [4]
        assert len(server.finished) == 3
    async with FakeServer(say_four, ServerOptions(reject_chat=True)) as server:
        with pytest.raises(ModelCallError, match="chat template"):
            await ask_critic((await open_desk(server.base_url, role={"endpoint": "chat"})).models.critic)
