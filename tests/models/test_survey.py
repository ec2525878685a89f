"""What a run asks of an endpoint before its first call, and what it makes of the answers."""

import asyncio
import json
import socket
from typing import Any

import pytest

from drpo_graph.errors import ModelCallError
from drpo_graph.events.schema import Warned
from drpo_graph.models.capabilities import Address, Capabilities, CapabilityCache
from drpo_graph.models.failures import CallFailure
from drpo_graph.models.http_json import Wire
from drpo_graph.models.patience import Patience, Spent
from drpo_graph.models.probing.survey import Wanted, is_current, survey
from tests.support.byte_server import Peer, Play, serve_raw
from tests.support.fake_server import FakeServer, ServerOptions, build_echo_responder
from tests.support.roles import open_desk

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


# An endpoint that is to be asked later

LIST = json.dumps({"data": [{"id": "m", "max_model_len": 8192}]})
SAID = json.dumps({"choices": [{"message": {"content": "hello"}}], "usage": {"prompt_tokens": 300}})
WELL = {"has_chat": True, "has_system_role": True, "max_context": 8192, "is_listed": True}
LIMIT, AWAY = "429 Too Many Requests", "503 Service Unavailable"
SOON = "Retry-After-Ms: 1"


def busy(path: str, *first: tuple[str, str]) -> Play:
    """Return a player whose first answers for a path are errors, each a status and a header."""
    left = list(first)

    async def play(peer: Peer) -> None:
        if peer.path.endswith(path) and left:
            status, header = left.pop(0)
            await peer.answer('{"error": {"message": "Come back later"}}', header, status=status)
        else:
            await peer.answer(SAID if peer.body else LIST)

    return play


async def patient_look(play: Play, patience: Patience) -> tuple[dict[str, Any], int]:
    """Return what a look tells, and how many requests it took."""
    async with serve_raw(play) as server:
        found = await survey(Address(server.base_url, "m"), identity="i", cache=None, patience=patience)
        return found.model_dump(exclude_defaults=True), len(server.asked)


@pytest.mark.parametrize("status", [LIMIT, AWAY, "529 Overloaded"])
@pytest.mark.parametrize("path", ["/models", "/chat/completions"])
async def test_look_comes_back_when_the_server_says(path: str, status: str) -> None:
    patience = Patience(max_outage_s=60, max_retries=3)
    assert await patient_look(busy(path, *[(status, SOON)] * 3), patience) == (WELL, 5)


@pytest.mark.parametrize(("num_silent", "is_told"), [(1, True), (2, True), (3, False)])
async def test_a_server_that_is_silent_at_first_is_asked_again(num_silent: int, is_told: bool) -> None:
    silent, over = list(range(num_silent)), asyncio.Event()

    async def play(peer: Peer) -> None:
        if peer.body and silent:
            silent.pop()
            await over.wait()
        else:
            await peer.answer(SAID if peer.body else LIST)

    async with serve_raw(play) as server:
        look = survey(
            Address(server.base_url, "m"),
            identity="i",
            cache=None,
            timeout_s=0.2,
            patience=Patience(60, 6, retry_wait_s=0.001),
        )
        if is_told:
            assert (await look).model_dump(exclude_defaults=True) == WELL
        else:
            with pytest.raises(ModelCallError, match="no reply in time"):
                await look
        over.set()


async def test_limit_costs_no_try_unless_none_is_waited_out() -> None:
    many = [(LIMIT, SOON)] * 9
    assert await patient_look(busy("/chat/completions", *many), Patience(60, 2)) == (WELL, 11)
    found, num_asked = await patient_look(busy("/chat/completions", *many), Patience(0, 2))
    assert (found, num_asked) == ({"max_context": 8192, "is_listed": True}, 4)


async def test_server_that_does_not_say_when_is_asked_again_for_a_chat_alone() -> None:
    patience = Patience(60, 2, retry_wait_s=0.001)
    for path, num_asked, told in (("/chat/completions", 3, WELL), ("/models", 2, {})):
        found, num = await patient_look(busy(path, (AWAY, "X: y")), patience)
        assert num == num_asked
        assert found == (told or {"has_chat": True, "has_system_role": True})
    found, num = await patient_look(busy("/chat/completions", *[(AWAY, "X: y")] * 9), patience)
    assert (found, num) == ({"max_context": 8192, "is_listed": True}, 4)


async def test_limit_that_outlasts_the_run_s_patience_stops_it_at_once() -> None:
    told: list[str] = []
    with pytest.raises(ModelCallError, match=r"limits the rate.*--max-outage") as caught:
        await patient_look(busy("/chat/completions", (LIMIT, "Retry-After: 700")), Patience(600, 6, tell=told.append))
    assert caught.value.kind == "http_429"
    assert told == []


@pytest.mark.parametrize(
    ("failure", "spent", "waits"),
    [
        (CallFailure("http_429", "retry", "", retry_after_s=40.0), Spent(9, 20.0), 40.0),
        (CallFailure("http_429", "retry", "", retry_after_s=40.0), Spent(9, 61.0), None),
        (CallFailure("http_429", "retry", ""), Spent(3, 0.0), 4.0),
        (CallFailure("http_429", "retry", ""), Spent(40, 90.0), None),
        (CallFailure("http_503", "retry", "", retry_after_s=40.0), Spent(1, 90.0), 40.0),
        (CallFailure("http_503", "retry", "", retry_after_s=4000.0), Spent(1, 0.0), None),
        (CallFailure("http_503", "retry", ""), Spent(2, 0.0), None),
        (CallFailure("http_500", "retry", ""), Spent(), None),
        (CallFailure("timeout", "retry", ""), Spent(1, 60.0), 1.0),
        (CallFailure("timeout", "retry", ""), Spent(2, 120.0), None),
        (CallFailure("connection", "retry", ""), Spent(), None),
        (CallFailure("http_401", "stop", ""), Spent(), None),
    ],
)
def test_waits_are_those_of_any_call(failure: CallFailure, spent: Spent, waits: float | None) -> None:
    assert Patience(100, 2, retry_wait_s=0.5).wait_for(failure, spent, is_needed=True) == waits


def test_long_wait_is_told_and_a_short_one_is_not() -> None:
    told: list[str] = []
    patience = Patience(600, tell=told.append)
    limit = CallFailure("http_429", "retry", "Come back later")
    assert patience.tell_wait("http://here", limit, 1.0) == 0
    assert patience.tell_wait("http://here", limit, 30.0) == 30
    assert told == [
        "http://here limits the rate (http_429: Come back later); the first look at it waits 30 s, and 600 s at most"
    ]


async def test_silence_is_told_to_each_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drpo_graph.models.probing.survey.MIN_ANNOUNCED_S", 0.01)
    told: list[str] = []
    answers = asyncio.Event()

    def tell(message: str) -> None:
        told.append(message)
        if len(told) == 2:
            answers.set()

    async def play(peer: Peer) -> None:
        if not peer.body:
            await answers.wait()
        await peer.answer(SAID if peer.body else LIST)

    async with serve_raw(play) as server:
        address = Address(server.base_url, "m")
        looks = [survey(address, identity="i", cache=None, patience=Patience(tell=tell)) for _ in range(2)]
        assert [one.max_context for one in await asyncio.gather(*looks)] == [8192, 8192]
    assert told == [f"{address.place} has not answered for 0.01 s: the run waits to learn what it can do"] * 2


async def test_list_that_does_not_come_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drpo_graph.models.probing.survey._LIST_TIMEOUT_S", 0.05)

    async def play(peer: Peer) -> None:
        if not peer.body:
            await asyncio.Event().wait()
        await peer.answer(SAID)

    assert await patient_look(play, Patience()) == ({"has_chat": True, "has_system_role": True}, 2)


async def test_run_tells_of_its_wait_and_goes_on() -> None:
    async with serve_raw(busy("/models", (LIMIT, SOON))) as server:
        desk = await open_desk(server.base_url, probe=True)
        assert desk.models.base.channel.client.window is not None
        assert [event for event in desk.events if isinstance(event, Warned)] == []
    async with serve_raw(busy("/chat/completions", (LIMIT, "Retry-After: 1"))) as server:
        with pytest.raises(ModelCallError, match="limits the rate"):
            await open_desk(server.base_url, probe=True, max_outage_s=0.5)
