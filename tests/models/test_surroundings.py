"""A wrong environment is told in one line, before the first call, whoever would have stumbled over it."""

import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from drpo_graph.errors import ModelSpecError
from drpo_graph.models.clients import build_clients
from drpo_graph.models.surroundings import check_surroundings, uses_socks
from drpo_graph.retrieval.embeddings import make_embeddings
from drpo_graph.settings.layers import build_settings

URL = "http://127.0.0.1:9/v1"
SECRET = "canary-8c1f0a77b2d94e"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def open_clients(model: str) -> None:
    build_clients(build_settings({"model": model, "base_url": URL}))


def open_embeddings() -> None:
    make_embeddings("openai:m", base_url=URL)


OPENERS = {
    "openai": lambda: open_clients("openai:m"),
    "vllm": lambda: open_clients("vllm:m"),
    "embeddings": open_embeddings,
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "OPENAI_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SSL_CERT_FILE", "/no/such.pem", "SSL_CERT_FILE names '/no/such.pem', which cannot be used: No such file"),
        ("SSL_CERT_FILE", __file__, "it holds no certificates"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "ALL_PROXY names a SOCKS proxy, which needs the package socksio"),
        ("all_proxy", "socks5h://127.0.0.1:1080", "all_proxy names a SOCKS proxy, .* pip install socksio"),
        ("HTTPS_PROXY", f"socks4://me:{SECRET}@127.0.0.1:1", "HTTPS_PROXY names a proxy of kind 'socks4': expected"),
        ("HTTP_PROXY", f"http://me:{SECRET}@host:port", "HTTP_PROXY is no address: expected http://host:port"),
        ("HTTP_PROXY", "http://", "HTTP_PROXY is no address"),
    ],
)
def test_environment_that_allows_no_client_is_told(
    opener: Callable[[], None], name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)  # As where it is not installed.
    with pytest.raises(ModelSpecError, match=said) as caught:
        opener()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", ""),
        ("HTTPS_PROXY", "127.0.0.1:8080"),
        ("HTTPS_PROXY", "http://user:p%40ss@proxy.test:8080/"),
        ("ALL_PROXY", "https://[::1]:8080"),
        ("NO_PROXY", "localhost,.test"),
    ],
)
def test_environment_that_clients_can_use_is_let_be(name: str, value: str) -> None:
    check_surroundings({name: value})


def test_certificates_that_exist_are_let_be() -> None:
    paths = ssl.get_default_verify_paths()
    file = paths.cafile or paths.openssl_cafile
    if not Path(file).is_file():
        pytest.skip("this system has no file of certificates")
    check_surroundings({"SSL_CERT_FILE": file})


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"{SECRET}\r", "a carriage return"),
        (f"{SECRET}\n", "a line end"),
        (f"\u201c{SECRET}\u201d", r"U\+201C \(left double quotation mark\)"),
        (f"{SECRET} ", "a space"),
        (f"Bearer {SECRET}", "a space"),
        (f"{SECRET}\u200b", r"U\+200B \(zero width space\)"),
        (f"{SECRET}\x7f", r"U\+007F \(a control character\)"),
        (f'"{SECRET}"', "quotes around it"),
    ],
)
@pytest.mark.parametrize(
    ("opener", "variable"), [("openai", "OPENAI_API_KEY"), ("vllm", "VLLM_API_KEY"), ("embeddings", "OPENAI_API_KEY")]
)
def test_key_that_no_request_can_carry_is_told_and_not_shown(
    key: str, said: str, opener: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, key)
    with pytest.raises(ModelSpecError, match=f"The key in {variable} holds {said}") as caught:
        OPENERS[opener]()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_named_variable_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", f"{SECRET}\r")
    with pytest.raises(ModelSpecError, match="The key in MINE holds a carriage return"):
        build_clients(build_settings({"model": "openai:m", "base_url": URL, "api_key_env": "MINE"}))


def test_socks_proxy_gets_the_client_that_speaks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_socks()
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    assert uses_socks()
    # What is told above is true: without the package, there is no such client.
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError, match="socksio"):
        openai.DefaultAsyncHttpxClient()
