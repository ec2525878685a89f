"""What holds for all tests: nothing is read from or left in the user's own folders."""

import sys
from collections.abc import Iterator

import pytest

from tests.support.command import Drpo


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own; processes that they start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fresh_clients() -> Iterator[None]:
    """Let go of the HTTP clients that LangChain keeps by URL: a server of another test may get the same port."""
    yield
    utils = sys.modules.get("langchain_openai.chat_models._client_utils")
    if utils is not None:
        utils._cached_async_httpx_client.cache_clear()


@pytest.fixture
def drpo(capsys: pytest.CaptureFixture[str]) -> Drpo:
    """The command line in this process."""
    return Drpo(capsys)
