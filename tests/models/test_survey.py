"""What a run asks of an endpoint before its first call, and what it makes of the answers."""

import asyncio
import socket
from typing import Any

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.models.capabilities import Address, Capabilities, CapabilityCache
from drpo_graph.models.http_json import Wire
from drpo_graph.models.probing.survey import Wanted, is_current, survey
from tests.support.fake_server import FakeServer, ServerOptions, build_echo_responder

KEY = "sk-canary-8c1f0a77b2d94e"
CHAT, FLAT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


async def look(name: str = "m", *, wanted: Wanted = Wanted(), **options: Any) -> dict[str, Any]:  # noqa: B008
    """Return what a look at a server with these options tells, without what stays unknown."""
    async with FakeServer(build_echo_responder(), ServerOptions(**options)) as server:
        found = await survey(
            Address(server.base_url, name, KEY), identity=server.base_url, cache=None, wanted=wanted, timeout_s=20
        )
        assert len(server.probes) == int(wanted.has_chat)
        assert len(server.gets) <= 2 * int(wanted.has_context)
    return found.model_dump(exclude_defaults=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {"has_chat": True, "has_system_role": True}),
        ({"drops_system": True}, {"has_chat": True, "has_system_role": False}),
        ({"reject_system_role": True}, {"has_chat": True, "has_system_role": False}),
        ({"reject_chat": True}, {"has_chat": False, "has_system_role": False}),
        ({"missing_routes": [CHAT]}, {"has_chat": False, "has_system_role": False}),
        ({"reports_usage": False}, {"has_chat": True}),
        ({"probe_errors": {"chat": 503}}, {}),
        ({"probe_errors": {"chat": 422}}, {}),
        ({"missing_routes": [MODELS]}, {"has_chat": True, "has_system_role": True}),
        (
            {"refuses": ["max_completion_tokens"], "refuses_like": "mistral"},
            {"has_chat": True, "terms": {"limit_field": "max_tokens"}},
        ),
        (
            {"server": "vllm", "max_model_len": 8192},
            {"has_chat": True, "has_system_role": True, "server": "vllm", "max_context": 8192, "counts_tokens": "vllm"},
        ),
        (
            {"server": "llama.cpp", "max_model_len": 4096, "models": ["m"]},
            {
                "has_chat": True,
                "has_system_role": True,
                "server": "llama.cpp",
                "max_context": 4096,
                "counts_tokens": "llama.cpp",
                "is_listed": True,
            },
        ),
    ],
)
async def test_a_look_tells_what_no_call_of_a_search_would(options: dict[str, Any], told: dict[str, Any]) -> None:
    assert await look(**options) == told


async def test_only_what_is_wanted_is_asked() -> None:
    options: dict[str, Any] = {"server": "vllm", "max_model_len": 8192}
    assert await look(wanted=Wanted(has_context=False), **options) == {"has_chat": True, "has_system_role": True}
    assert "has_chat" not in await look(wanted=Wanted(has_chat=False), **options)


@pytest.mark.parametrize(
    ("name", "options", "kind", "words"),
    [
        ("m", {"api_key": "another"}, "http_401", "Check the API key"),
        ("wrold", {"models": ["world", *"abcdef"]}, "http_404", "Served there: world, a, b, c, d and 2 more."),
        ("m", {"missing_routes": [CHAT, FLAT, MODELS]}, "http_404", "which usually ends in /v1"),
    ],
)
async def test_endpoint_of_no_use_is_told(name: str, options: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(ModelCallError, match=words) as caught:
        await look(name, **options)
    assert caught.value.kind == kind
    assert KEY not in str(caught.value)


async def test_unreachable_server_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(ModelCallError, match=r"'m' at http.*cannot be reached: .*Check that it runs") as caught:
        await survey(Address(url, "m", KEY), identity=url, cache=None)
    assert caught.value.kind == "unreachable"


async def test_callers_at_the_same_time_share_one_look(tmp_path: Any) -> None:
    async with FakeServer(build_echo_responder(), ServerOptions()) as server:
        address, cache = Address(server.base_url, "m", KEY), CapabilityCache(tmp_path)
        asked = [survey(address, identity=server.base_url, cache=cache) for _ in range(8)]
        found = await asyncio.gather(*asked)
        num_probes = len(server.probes)
        assert num_probes == 1
        assert all(one == found[0] for one in found)
        again = await survey(address, identity=server.base_url, cache=cache)
        assert (again, len(server.probes)) == (found[0], num_probes)
        await survey(address, identity=server.base_url, cache=None)
        assert len(server.probes) == 2 * num_probes
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


async def test_caller_that_gives_up_costs_the_others_nothing() -> None:
    async with FakeServer(build_echo_responder(), ServerOptions()) as server:
        address = Address(server.base_url, "m")
        first = asyncio.ensure_future(survey(address, identity="i", cache=None))
        second = asyncio.ensure_future(survey(address, identity="i", cache=None))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).has_chat
        assert first.cancelled()
        assert len(server.probes) == 1


async def test_remembered_capabilities_are_looked_at_again_where_the_server_has_changed(tmp_path: Any) -> None:
    cache = CapabilityCache(tmp_path)
    seen = []
    for length in (4096, 4096, 8192):
        options = ServerOptions(server="vllm", models=["m"], max_model_len=length)
        async with FakeServer(build_echo_responder(), options) as server:
            found = await survey(Address(server.base_url, "m"), identity="local:file", cache=cache)
            seen.append((found.max_context, bool(server.probes)))
            assert server.gets.count(MODELS) <= 2
    assert seen == [(4096, True), (4096, False), (8192, True)]


async def test_model_that_is_gone_or_a_server_that_is_gone_is_not_current() -> None:
    listed = Capabilities(is_listed=True, max_context=None)

    async def holds(url: str, name: str, cached: Capabilities) -> bool:
        return is_current(await Wire(Address(url, name), timeout_s=20).get("/models"), cached, name=name)

    async with FakeServer(build_echo_responder(), ServerOptions(models=["m"])) as server:
        assert await holds(server.base_url, "m", listed)
        assert not await holds(server.base_url, "gone", listed)
        # A server that takes any name for its one model never listed this one.
        assert await holds(server.base_url, "nickname", Capabilities())
        url = server.base_url
    assert not await holds(url, "m", listed)
    async with FakeServer(build_echo_responder(), ServerOptions(missing_routes=[MODELS])) as server:
        assert await holds(server.base_url, "m", listed)


async def test_name_that_a_server_of_several_models_does_not_list_is_tried() -> None:
    async with FakeServer(build_echo_responder(), ServerOptions(models=["a", "b"])) as server:
        for name, num_probes in (("a", 0), ("wrold", 1)):
            asked = survey(
                Address(server.base_url, name), identity=name, cache=None, wanted=Wanted(has_chat=False), timeout_s=20
            )
            if num_probes:
                with pytest.raises(ModelCallError, match="Served there: a, b"):
                    await asked
            else:
                assert (await asked).is_listed
            assert len(server.probes) == num_probes
