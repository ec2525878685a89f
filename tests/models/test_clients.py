"""From model strings to clients: where each form points, which key it takes, and what is refused with which words."""

from importlib.util import find_spec
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.clients import DEFAULT_VLLM_URL, build_client, build_clients, find_endpoints
from drpo_graph.models.transport import LangChainTransport, OpenAITransport
from drpo_graph.settings.layers import build_settings
from drpo_graph.settings.settings import RoleSettings, Settings

KEY = "canary-8c1f0a77b2d94e"
NAMES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "VLLM_BASE_URL", "VLLM_API_KEY", "MY_KEY")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def find(model: str, **fields: Any) -> tuple[str, str, str] | None:
    found = [
        (one.address.name, one.address.base_url, one.address.api_key)
        for one in find_endpoints("critic", RoleSettings(model=model, **fields))
    ]
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize("model", ["vllm:m", "openai:m"])
def test_several_servers_of_one_model(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("http://a:1/v1", "http://b:2/v1/", "http://a:1/v1")
    listed = find_endpoints("base", RoleSettings(model=model, base_url=urls))
    assert [one.address.base_url for one in listed] == ["http://a:1/v1", "http://b:2/v1"]
    monkeypatch.setenv("VLLM_BASE_URL", "http://c/v1, http://d/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://c/v1 http://d/v1")
    named = find_endpoints("base", RoleSettings(model=model))
    assert [one.address.base_url for one in named] == ["http://c/v1", "http://d/v1"]
    with pytest.raises(ModelSpecError, match="expected http"):
        find_endpoints("base", RoleSettings(model=model, base_url=("http://a/v1", "nonsense")))


@pytest.mark.parametrize(
    ("model", "fields", "environment", "expected"),
    [
        ("openai:gpt-4o", {}, {"OPENAI_API_KEY": KEY}, ("gpt-4o", "https://api.openai.com/v1", KEY)),
        ("openai:ft:gpt-4o:me", {}, {"OPENAI_API_KEY": KEY}, ("ft:gpt-4o:me", "https://api.openai.com/v1", KEY)),
        ("openai:m", {}, {"OPENAI_BASE_URL": "http://a:1/v1/"}, ("m", "http://a:1/v1", "EMPTY")),
        (
            "openai:m",
            {"base_url": "http://b/v1"},
            {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": KEY},
            ("m", "http://b/v1", KEY),
        ),
        ("openai:m", {"base_url": "http://b/v1", "api_key_env": "MY_KEY"}, {"MY_KEY": KEY}, ("m", "http://b/v1", KEY)),
        ("vllm:org/name", {}, {}, ("org/name", DEFAULT_VLLM_URL, "EMPTY")),
        ("vllm:m", {}, {"VLLM_BASE_URL": "http://v/v1", "VLLM_API_KEY": KEY}, ("m", "http://v/v1", KEY)),
        ("vllm:m", {}, {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": KEY}, ("m", DEFAULT_VLLM_URL, "EMPTY")),
        ("vllm:m", {"base_url": "http://[::1]:9/v1"}, {}, ("m", "http://[::1]:9/v1", "EMPTY")),
        # An OpenAI-compatible server with names of its own.
        ("llama3:8b", {"base_url": "http://ollama/v1"}, {}, ("llama3:8b", "http://ollama/v1", "EMPTY")),
        ("anthropic:claude", {}, {}, None),
    ],
)
def test_model_string_points_to_its_server(
    model: str,
    fields: dict[str, Any],
    environment: dict[str, str],
    expected: tuple[str, str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find(model, **fields) == expected


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        ("", {}, "critic model is not set. Give --model for all roles or --critic-model"),
        ("gpt-4o", {}, "'gpt-4o': expected provider:model"),
        ("openai:", {}, "'openai:': expected provider:model"),
        ("openai:gpt-4o", {}, "set OPENAI_API_KEY"),
        ("openai:m", {"base_url": "http://b/v1", "api_key_env": "MY_KEY"}, "variable MY_KEY is not set"),
        ("vllm:m", {"base_url": "localhost:8000"}, "'localhost:8000': expected http"),
        ("vllm:m", {"base_url": "ftp://host/v1"}, "expected http"),
        ("vllm:m", {"base_url": "http:///v1"}, "expected http"),
        ("vllm:m", {"base_url": "http://[::1/v1"}, "cannot be read"),
        ("vllm:m", {"base_url": "http://host:port/v1"}, "cannot be read"),
        ("vllm:m", {"base_url": "http://host:99999/v1"}, "cannot be read"),
        ("vllm:m", {"base_url": f"http://host/v1?key={KEY}"}, "without a query"),
        ("vllm:m", {"base_url": f"http://me:{KEY}@host/v1"}, "must not hold a password; name a variable"),
        ("vllm:m", {"base_url": f"ftp://me:{KEY}@host/v1"}, "must not hold a password"),
        ("vllm:m", {"base_url": f"http://{KEY}@host/v1"}, "must not hold a password"),
        ("vllm:m", {"base_url": f"http://me:{KEY}@host:port/v1"}, "cannot be read"),
        ("local:nowhere.gguf", {}, "expected 'local:smollm2' or the path of a GGUF file"),
    ],
)
def test_model_string_that_cannot_be_used_says_why(model: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelSpecError) as caught:
        find(model, **fields)
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "variable"), [("openai:m", "OPENAI_API_KEY"), ("vllm:m", "VLLM_API_KEY")])
def test_key_that_is_set_and_empty_is_told_before_any_call(
    monkeypatch: pytest.MonkeyPatch, model: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    with pytest.raises(ModelSpecError, match=f"{variable} is set, and empty"):
        find(model, base_url="http://a/v1")


@pytest.mark.skipif(find_spec("langchain") is not None, reason="the package langchain is installed")
def test_other_provider_without_langchain_says_what_to_install() -> None:
    with pytest.raises(ModelSpecError, match="pip install langchain and the provider's package"):
        build_client("critic", Settings(critic=RoleSettings(model="anthropic:claude")))


def test_every_role_has_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    settings = build_settings(
        {
            "base": {"model": "vllm:small", "endpoint": "completions"},
            "metrics": {"model": "openai:m", "base_url": "http://b/v1", "api_key_env": "MY_KEY"},
            "critic": {"model": "openai:m", "base_url": "http://b/v1"},
        }
    )
    clients = build_clients(settings, {"optimizer": FakeListChatModel(responses=["x"])})
    kinds = {role: type(client.replicas[0].transport) for role, client in clients.items()}
    assert kinds == {
        "base": OpenAITransport,
        "metrics": OpenAITransport,
        "critic": OpenAITransport,
        "optimizer": LangChainTransport,
    }
    assert {role: client.replicas[0].endpoint for role, client in clients.items()} == {
        "base": DEFAULT_VLLM_URL,
        "metrics": "http://b/v1",
        "critic": "http://b/v1",
        "optimizer": "FakeListChatModel",
    }
    assert {role: client.replicas[0].secret for role, client in clients.items()} == {
        "base": "",
        "metrics": KEY,
        "critic": "",
        "optimizer": "",
    }
    assert clients["optimizer"].settings.model == "FakeListChatModel"
    assert KEY not in repr(clients)


def test_given_model_s_address_is_shown_without_its_secrets() -> None:
    given = ChatOpenAI(model="mine", base_url=f"http://me:{KEY}@host/v1", api_key=SecretStr("secret-key"))
    client = build_client("critic", Settings(), given)
    assert client.replicas[0].endpoint == "http://host/v1"
    assert client.settings.model == "mine"
    assert KEY not in repr(client)


async def test_clients_of_an_endpoint_share_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = build_settings(
        {role: {"model": "vllm:m"} for role in ("base", "metrics", "critic")}
        | {"optimizer": {"model": "vllm:m", "base_url": "http://other/v1"}, "max_concurrency": 3}
    )
    gates = {role: client.replicas[0].gate() for role, client in build_clients(settings).items()}
    assert gates["base"] is gates["critic"] is gates["metrics"]
    assert gates["optimizer"] is not gates["base"]
    assert gates["base"].max_concurrency == 3
